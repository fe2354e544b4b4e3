import pytest

from astrolabe_eval import Suite, SuiteError, load_suite


def test_default_seeds_depend_on_the_position_alone():
    short = Suite("a", ("one", "two"))
    long = Suite("b", ("1", "2", "three"))
    assert long.seeds[:2] == short.seeds
    assert len(set(long.seeds)) == 3


def test_a_prompt_may_occur_twice_with_different_noise():
    suite = Suite("demo", ("same", "same"))
    assert suite.prompts == ("same", "same")
    assert suite.seeds[0] != suite.seeds[1]


def test_lists_become_tuples_that_cannot_change_later():
    prompts = ["one", "two"]
    suite = Suite("demo", prompts, [5, 6])
    prompts.append("three")
    assert suite.prompts == ("one", "two")
    assert suite.seeds == (5, 6)


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        ((), (), "no prompts"),
        (("fine", "  "), (), r"Prompt 1 .* '  '"),
        (("fine", 3), (), r"Prompt 1 .* 3"),
        ("one string", (), "tuple of strings"),
        (("one", "two"), (1,), "2 prompts and 1 seeds"),
        (("one",), (-1,), "Seed 0 .* -1"),
        (("one",), (2**63,), "Seed 0"),
    ],
)
def test_unusable_suites_are_refused(prompts, seeds, message):
    with pytest.raises(SuiteError, match=message):
        Suite("demo", prompts, seeds)


def test_a_file_gives_its_lines_in_order_and_keeps_duplicates(tmp_path):
    path = tmp_path / "motion.txt"
    path.write_bytes("\ufeffein grüner Kreis\r\n\n  b \nb\n".encode())
    suite = load_suite(path)
    assert suite.name == "motion"
    assert suite.prompts == ("ein grüner Kreis", "b", "b")
    assert load_suite(path, limit=1, name="first") == Suite("first", ("ein grüner Kreis",))


def test_bad_files_are_refused_with_their_place(tmp_path):
    path = tmp_path / "prompts.txt"
    with pytest.raises(SuiteError, match=r"no prompt file .*prompts\.txt"):
        load_suite(path)
    path.write_text("\n  \n")
    with pytest.raises(SuiteError, match="has no prompts"):
        load_suite(path)
    path.write_bytes("fine\nein grüner Kreis\n".encode("latin-1"))
    with pytest.raises(SuiteError, match=r"Line 2 of .* not UTF-8"):
        load_suite(path)
    path.write_text("fine")
    with pytest.raises(SuiteError, match="limit is 0"):
        load_suite(path, limit=0)
    with pytest.raises(SuiteError, match="it is a folder, not a file"):
        load_suite(tmp_path)
