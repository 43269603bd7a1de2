import pytest

SHOW = "print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize("program", ["train", "eval"])
def test_programs_tell_threads_how_to_wait_before_pytorch_is_imported(start, program):
    done = start("-c", f"import os, {program}; {SHOW}")
    assert done.stdout.strip() == "1000", done.stderr


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),  # whoever sets this has decided
    ],
)
def test_what_the_user_has_set_is_left_alone(start, variables, expected):
    done = start("-c", f"import os, common.threads; {SHOW}", variables=variables)
    assert done.stdout.strip() == expected, done.stderr


def test_it_is_left_alone_where_pytorch_has_been_imported(start):
    assert start("-c", f"import os, torch, common.threads; {SHOW}").stdout.strip() == "None"
