"""New names among PEFT's methods.

Owns one third-party quirk: `register_peft_method` takes outside methods, but only under names that stand in the enum
`PeftType` (peft 0.21). Remove `_add_member` when PEFT registers names that it does not know.
"""

from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method


def register(name: str, config: type[PeftConfig], model: type[BaseTuner]) -> None:
    """Makes a method known to PEFT; `PeftModel.from_pretrained` then loads what was saved with it.

    Args:
        name: In lower case; folders record it in upper case as `peft_type`.
        config: Configuration, a dataclass.
        model: What injects the layers.
    """
    _add_member(name.upper())
    register_peft_method(name=name, config_cls=config, model_cls=model, prefix=model.prefix)


def peft_type(name: str) -> PeftType:
    """The member of `PeftType` that stands for a name, added where PEFT has none."""
    _add_member(name.upper())
    return PeftType(name.upper())


def _add_member(value: str) -> None:
    """Adds a member to an enum that is closed otherwise."""
    if value in PeftType._value2member_map_:
        return
    member = str.__new__(PeftType, value)
    member._name_, member._value_ = value, value
    PeftType._member_names_.append(value)
    PeftType._member_map_[value] = PeftType._value2member_map_[value] = member
    type.__setattr__(PeftType, value, member)
