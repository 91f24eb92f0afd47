"""Documents that are nearly an earlier one: MinHash signatures in locality-sensitive buckets (Broder 1997).

The only file that imports datasketch. Buckets only propose: a pair counts once its signatures estimate a similarity of
at least the threshold, so false proposals drop nothing.
"""

from typing import cast

from datasketch import MinHash, MinHashLSH

from rlhf.corpus.config import NearDuplicates
from rlhf.corpus.duplicates import normalised
from rlhf.corpus.segments import words_of


class NearDuplicateDocuments:
    """Drops a document whose word n-grams nearly agree with those of one that was kept before.

    Args:
        config: Threshold and size of signatures.
        seed: Of the hash functions.
    """

    name = "near_duplicates"

    def __init__(self, config: NearDuplicates, *, seed: int) -> None:
        self._config, self._seed = config, seed
        self._buckets = MinHashLSH(threshold=config.threshold, num_perm=config.permutations)
        self._kept: list[MinHash] = []
        self._last = self._empty()

    def apply(self, text: str) -> str:
        """The text, or "" where a similar one was kept before."""
        self._last = self._empty()
        self._last.update_batch(ngram.encode("utf-8", "surrogatepass") for ngram in word_ngrams(text, self._config))
        proposed = (self._kept[cast(int, key)] for key in self._buckets.query(self._last))
        return "" if any(self._last.jaccard(other) >= self._config.threshold for other in proposed) else text

    def keep(self) -> None:
        """Remembers the last text by its signature."""
        self._buckets.insert(len(self._kept), self._last)
        self._kept.append(self._last)

    def _empty(self) -> MinHash:
        return MinHash(num_perm=self._config.permutations, seed=self._seed + 1)


def word_ngrams(text: str, config: NearDuplicates) -> list[str]:
    """The different n-grams of a normalised text; a shorter text is one."""
    words, n = words_of(normalised(text)), config.ngram_words
    return sorted({" ".join(words[start : start + n]) for start in range(max(len(words) - n, 0) + 1)})
