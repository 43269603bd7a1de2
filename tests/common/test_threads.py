import pytest


@pytest.mark.parametrize("program", ["train", "eval"])
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),  # whoever sets this has decided
    ],
)
def test_threads_are_told_how_to_wait_before_pytorch_is_imported(
    start, program, variables, expected
):
    code = f"import os, {program}; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = start("-c", code, variables=variables)
    assert done.stdout.strip() == expected, done.stderr


def test_it_is_left_alone_where_pytorch_has_been_imported(start):
    code = "import os, torch, common.threads; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert start("-c", code).stdout.strip() == "None"
