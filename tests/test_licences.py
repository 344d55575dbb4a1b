"""Which licence a port carries: never a laxer one than either input's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch_cards.licences import CLASSES, Licence, combine
from porting.errors import Refused

KNOWN = st.sampled_from(sorted(CLASSES)).map(Licence)
UNKNOWN = st.sampled_from(
    [
        Licence(None),
        Licence("unknown"),
        Licence("my-own"),
        Licence("other"),
        Licence("other", "deepseek", "https://example.org/license"),
    ]
)
ANY = KNOWN | UNKNOWN
STRICT = {"permissive": 0, "terms": 1, "copyleft": 1, "no": 2}


@given(ANY, ANY)
def test_a_merged_port_has_the_licence_of_the_stricter_or_names_both(
    base: Licence, patch: Licence
) -> None:
    classes = [CLASSES.get(each.id or "") for each in (base, patch)]
    try:
        terms = combine(base, patch, "merged")
    except Refused as refused:
        assert "no" in classes or None not in classes
        assert str(refused).count(".") >= 2  # what, and the way out
        return
    assert "no" not in classes
    licence = terms.licence
    assert str(base) in terms.notice and str(patch) in terms.notice
    if None in classes and base != patch:  # what is not known is never taken for anything
        assert licence.id in ("other", None)
        assert (licence.id is None) == (base.id is None and patch.id is None)
    if licence.id not in (None, "other"):
        assert licence.id in (base.id, patch.id)
        if None not in classes:
            assert STRICT[CLASSES[licence.id]] == max(STRICT[each] for each in classes if each)
    elif base != patch and licence.id == "other":
        assert str(base) in (licence.name or "") and str(patch) in (licence.name or "")


@given(ANY, ANY)
def test_who_is_the_base_does_not_matter_to_a_merged_port(one: Licence, other: Licence) -> None:
    def outcome(base: Licence, patch: Licence) -> str | None:
        try:
            licence = combine(base, patch, "both").licence
        except Refused:
            return "refused"
        return "other" if licence.id == "other" else licence.id

    assert outcome(one, other) == outcome(other, one)


@given(ANY, ANY)
def test_an_adapter_keeps_the_licence_of_the_patch(base: Licence, patch: Licence) -> None:
    if CLASSES.get(patch.id or "") == "no":
        with pytest.raises(Refused, match="no derivatives"):
            combine(base, patch, "adapter")
        return
    terms = combine(base, patch, "adapter")
    assert terms.licence == patch
    assert f"the base's licence ({base}) holds as well" in terms.notice


@pytest.mark.parametrize(
    ("base", "patch", "expected"),
    [
        ("apache-2.0", "mit", "apache-2.0"),
        ("mit", "llama3.1", "llama3.1"),
        ("mit", "bsd-3-clause", "other"),
        ("apache-2.0", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("gemma", "cc-by-nc-4.0", "other"),
        ("llama3", "llama3.1", "other"),
        ("apache-2.0", "gpl-3.0", "gpl-3.0"),
        ("apache-2.0", "gpl-2.0", None),
        ("gpl-3.0", "agpl-3.0", "agpl-3.0"),
        ("cc-by-sa-4.0", "gpl-3.0", "gpl-3.0"),
        ("gpl-3.0", "cc-by-nc-4.0", None),
        ("cc-by-sa-4.0", "cc-by-nc-4.0", None),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"),
        ("gpl-3.0", "llama3.1", None),
        ("cc-by-nd-4.0", "mit", None),
    ],
)
def test_pairs_whose_answer_is_known(base: str, patch: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(Refused):
            combine(Licence(base), Licence(patch), "merged")
    else:
        assert combine(Licence(base), Licence(patch), "merged").licence.id == expected


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_what_a_vendor_wants_to_be_said_is_said(form: str) -> None:
    notice = combine(Licence("llama3.2"), Licence("apache-2.0"), form).notice
    assert "Built with Llama." in notice and "begins with “Llama”" in notice
    assert "Gemma Terms of Use" in combine(Licence("gemma"), Licence("mit"), form).notice


@given(st.text("a <>[]()`|*#\\\n\r-", max_size=200))
def test_its_name_marks_nothing_up(name: str) -> None:
    said = str(Licence("other", f"x{name}"))
    assert not set(said) & set("<>[]`|*#\\\n\r") and 0 < len(said) <= 100
