"""What was done to a patch, in one sentence for a person, and what serves the port."""

from porting import Adapter

PLAIN = ("lora", "rslora")
ABSOLUTE = (
    " Values that the patch holds whole ({field}) are moved as their differences to the base it "
    "was trained on, so that what the vendor changed there stays changed."
)


def account(found: Adapter, form: str, policy: str | None) -> str:
    """What a port of `found` in this form (`adapter`, `merged`, `both`) and policy is."""
    sentence = _said(found, form, policy)
    if found.whole_field is not None:
        sentence += ABSOLUTE.format(field=found.whole_field)
    return sentence


def is_served(found: Adapter) -> bool:
    """Whether vLLM takes the port's adapter: plain LoRA only, and no other weights beside it.

    One of class B comes out as plain LoRA.
    """
    return (found.portability == "B" or found.kind in PLAIN) and found.whole_field is None


def _said(found: Adapter, form: str, policy: str | None) -> str:
    kind, adapter = found.kind, form == "adapter"
    if found.portability == "D":
        return f"Copied as it is, pointed at the new base: {kind} can't be merged."
    if found.portability == "B":
        plain = "a plain LoRA of twice the rank" if adapter else "the new base's weights"
        return (
            f"Converted: {kind} starts from the base's own weights, so only what training changed "
            f"since that start, `scale * (B A - B0 A0)`, is carried over, as a part of {plain}."
        )
    if found.portability == "C" and policy == "freeze":
        return (
            f"Frozen: {kind} is not additive, so the change that it made to the base it was "
            "trained on was computed there, and that is added: `W' = W_new + (f(W_old) - W_old)`."
        )
    if found.portability == "C":
        how = "when it is loaded" if adapter else "once, in the weights"
        return (
            f"Reapplied: {kind} is not additive, so its operator works on the new base's weights, "
            f"`W' = f(W_new)`, {how}."
        )
    return (
        "Added: `W' = W_new + dW` for every tensor that the patch touches, dW being `scale * B A` "
        "for a LoRA (arXiv 2410.10870, Eq. 6)."
    )
