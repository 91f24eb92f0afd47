"""What `rlhf tokenizers` prints."""

import io

from rich.console import Console

from rlhf.tokenizer_comparison.page import console_table


def test_the_table_fits_a_terminal_of_80_characters_with_every_heading_whole() -> None:
    row = {
        "vocabulary": 16_384,
        "fertility": 1.218,
        "bytes_per_token": 4.2,
        "unknown_rate": 0.0,
        "round_trip_rate": 1.0,
        "bits_per_byte": 1.356,
        "parameters": 1_054_272,
    }
    output = io.StringIO()
    Console(file=output, width=80).print(console_table({"tokenizers": {"wordpiece-16384": row}}))
    assert "…" not in output.getvalue()
    assert max(len(line) for line in output.getvalue().splitlines()) <= 80
