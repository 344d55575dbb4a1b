"""Which licence a port carries: the stricter one wins, and what can't be combined is refused.

Names are the Hub's (https://huggingface.co/docs/hub/repositories-licenses). What is not among them
is never taken for permissive. This is caution, not legal advice. Classes, and where their rules
come from:

permissive   Attribution at most. Whatever is stricter may be put on top (of OSI's licences; CC0 and
             CC BY, https://creativecommons.org/share-your-work/cclicenses/).
terms        Conditions that go along with every copy: no commercial use (CC BY-NC), the uses that
             RAIL licences forbid (paragraph 5 and attachment A), Meta's (section 1.b) and Google's
             (section 3.1). They add up: both licences hold.
copyleft     What is made of it stays under the same licence, with nothing added: CC BY-SA section
             3(b), GPL-3.0 sections 5(c) and 10. So it can't be combined with terms, nor with
             another copyleft, but for the pairs that one of both names itself (`GOES_UNDER`).
no           No derivatives (CC BY-ND section 2(a)(1)(B)): what is made of it can't be shared.

An adapter holds none of the base's weights, so it is under the patch's licence alone.
"""

import re
from dataclasses import dataclass
from typing import Literal

from porting.errors import Refused

Class = Literal["permissive", "terms", "copyleft", "no"]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# By how much they ask for: nothing, a notice, more.
PERMISSIVE = (
    _names("cc0-1.0 unlicense wtfpl pddl"),
    _names(
        "mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear isc zlib ncsa postgresql bsl-1.0 "
        "openmdw-1.0"
    ),
    _names(
        "apache-2.0 ecl-2.0 afl-3.0 ms-pl artistic-2.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 "
        "odc-by etalab-2.0 cdla-permissive-1.0 cdla-permissive-2.0"
    ),
)
LLAMA = _names("llama2 llama3 llama3.1 llama3.2 llama3.3 llama4")
RAIL = _names(
    "openrail openrail++ creativeml-openrail-m bigscience-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m"
)
TERMS = _names(
    "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 gemma grok2-community deepfloyd-if-license apple-amlr "
    "apple-ascl h-research intel-research fair-noncommercial-research-license c-uda"
)
COPYLEFT = _names(
    "gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 "
    "eupl-1.2 osl-3.0 gfdl ofl-1.1 lppl-1.3c odbl cdla-sharing-1.0 cc-by-sa-3.0 cc-by-sa-4.0 "
    "cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0"
)
NO = _names("cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0")
CLASSES: dict[str, Class] = {
    **{name: "permissive" for names in PERMISSIVE for name in names},
    **dict.fromkeys([*LLAMA, *RAIL, *TERMS], "terms"),
    **dict.fromkeys(COPYLEFT, "copyleft"),
    **dict.fromkeys(NO, "no"),
}
# One of these may be put under the other: by its own words, or by
# https://creativecommons.org/share-your-work/licensing-considerations/compatible-licenses/ and
# https://www.gnu.org/licenses/license-list.html
GOES_UNDER = {
    "cc-by-sa-3.0": {"cc-by-sa-4.0"},
    "cc-by-sa-4.0": {"gpl-3.0"},
    "cc-by-nc-4.0": {"cc-by-nc-sa-4.0"},
    "cc-by-nc-3.0": {"cc-by-nc-sa-3.0"},
    "cc-by-nc-sa-2.0": {"cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"},
    "cc-by-nc-sa-3.0": {"cc-by-nc-sa-4.0"},
    "gpl": {"gpl-2.0", "gpl-3.0"},
    "gpl-3.0": {"agpl-3.0"},
    "lgpl-2.1": {"gpl-2.0", "gpl-3.0"},
    "lgpl-3.0": {"gpl-3.0", "agpl-3.0"},
    "mpl-2.0": {"gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0"},
    "eupl-1.2": {"gpl-2.0", "gpl-3.0", "agpl-3.0"},
}
# Permissive, but with a condition that the GPL does not allow (the same list).
NOT_WITH_GPL = {"afl-3.0", "ms-pl"}
NOT_WITH_GPL_2 = {"apache-2.0", "ecl-2.0"}


MARKS = re.compile(r"[<>\[\]`|*#\\]")


@dataclass(frozen=True)
class Licence:
    """What a repo's card says: `license`, and for `other` its `license_name` and `license_link`."""

    id: str | None
    name: str | None = None
    link: str | None = None

    @property
    def is_known(self) -> bool:
        return self.id in CLASSES

    def __str__(self) -> str:
        """In a sentence, such as one of the card's: no marks of Markdown, whoever wrote it."""
        said = (self.name if self.id == "other" else self.id) or ""
        return " ".join(MARKS.sub(" ", said).split())[:100] or "unknown"


@dataclass(frozen=True)
class Terms:
    """The licence of a port, and the sentences that its card has to say about it."""

    licence: Licence
    notice: str


def combine(base: Licence, patch: Licence, form: str) -> Terms:
    """The licence of a port of this form (adapter, merged or both), and what its card has to say.

    Raises Refused where it may not be shared.
    """
    if CLASSES.get(patch.id or "") == "no":
        raise Refused(
            f"The patch is under {patch}, which allows no derivatives, and a port of it is one. "
            "Ask its owner for another licence."
        )
    said = [note for each in dict.fromkeys((base, patch)) if (note := _demand(each))]
    if form == "adapter":
        holds = (
            f"The adapter is under the patch's licence ({patch}). It holds none of the base's "
            f"weights; once it is loaded, the base's licence ({base}) holds as well."
        )
        return Terms(patch, " ".join([holds, *said]))
    licence = _stricter(base, patch)
    holds = f"The base's licence ({base}) and the patch's ({patch}) hold for this port."
    return Terms(licence, " ".join([holds, *said]))


def _stricter(base: Licence, patch: Licence) -> Licence:
    if CLASSES.get(base.id or "") == "no":
        raise Refused(
            f"The base is under {base}, which allows no derivatives, and a merged model is one. "
            "Subscribe with --as adapter, which holds none of its weights."
        )
    if base == patch or (base.is_known and base.id == patch.id):
        return base
    if base.id is None or patch.id is None or not (base.is_known and patch.is_known):
        return _both(base, patch)
    for one, other in ((base, patch), (patch, base)):
        if other.id in GOES_UNDER.get(one.id or "", ()):
            return other
    classes = {CLASSES[base.id], CLASSES[patch.id]}
    if classes == {"permissive"}:
        return _more_asked(base, patch)
    if "permissive" in classes and not _are_at_odds(base.id, patch.id):
        return patch if CLASSES[base.id] == "permissive" else base
    if classes == {"terms"}:
        return _both(base, patch)
    raise Refused(
        f"The base's licence ({base}) and the patch's ({patch}) can't both hold for a merged "
        "model. Subscribe with --as adapter, which holds none of the base's weights, or ask the "
        "patch's owner for another licence."
    )


def _more_asked(base: Licence, patch: Licence) -> Licence:
    asked = [
        next(rank for rank, names in enumerate(PERMISSIVE) if each.id in names)
        for each in (base, patch)
    ]
    if asked[0] == asked[1]:
        return _both(base, patch)
    return base if asked[0] > asked[1] else patch


def _are_at_odds(one: str, other: str) -> bool:
    pair = {one, other}
    if pair & {"gpl-2.0", "lgpl-2.1"} and pair & NOT_WITH_GPL_2:
        return True
    return any("gpl" in name for name in pair) and bool(pair & NOT_WITH_GPL)


def _both(base: Licence, patch: Licence) -> Licence:
    """What has no name of its own on the Hub: both hold."""
    if base.id is None and patch.id is None:
        return Licence(None)
    return Licence("other", f"{base}-and-{patch}", base.link or patch.link)


def _demand(licence: Licence) -> str | None:
    """What the licence wants to be said of whatever is made of it."""
    id = licence.id
    if id in LLAMA and id != "llama2":
        built = "Meta Llama 3" if id == "llama3" else "Llama"
        begins = "Llama 3" if id == "llama3" else "Llama"
        return (
            f"Built with {built}. Its licence ({id}) asks that the name of a model made of it "
            f"begins with “{begins}”, and that its acceptable use policy is kept."
        )
    if id == "llama2":
        return (
            "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta "
            "Platforms, Inc. All Rights Reserved. Its acceptable use policy is to be kept."
        )
    if id == "gemma":
        return (
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            "ai.google.dev/gemma/terms; the uses that these forbid are forbidden here as well."
        )
    if id in RAIL:
        return f"The uses that {id} forbids are forbidden for this port as well."
    return None
