"""key=value arguments for the small commands of this package."""

import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from common.errors import UserError

Arguments = TypeVar("Arguments")


def parse_arguments(cls: type[Arguments], arguments: list[str]) -> Arguments:
    """Makes a dataclass from arguments such as ``steps=1000``.

    Args:
        cls: Dataclass whose fields are the keys; a field without a default must be given.
        arguments: The command line, without the name of the program.

    Raises:
        UserError: An unknown key, a wrong type, or a key that is missing.
    """
    keys = fields(cls)  # type: ignore[arg-type]
    known = ", ".join(
        field.name if field.default is MISSING else f"{field.name}={field.default}"
        for field in keys
    )
    for argument in arguments:
        if "=" not in argument:
            raise UserError(f"'{argument}' is not of the form key=value; the keys are: {known}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.from_cli(arguments))
    except ConfigKeyError as error:
        raise UserError(f"there is no key '{error.key}'; the keys are: {known}") from None
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{error.full_key}: {reason}; the keys are: {known}") from None
    for field in keys:
        if OmegaConf.is_missing(merged, field.name):
            raise UserError(f"{field.name}=... must be given; the keys are: {known}")
    result: Any = OmegaConf.to_object(merged)
    return result


def run_command(main: Callable[[list[str]], Any], interrupted: str = "interrupted") -> None:
    """Runs a command with the arguments of this process; what goes wrong ends as one sentence.

    Args:
        main: The command.
        interrupted: What is said after Ctrl-C.
    """
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(interrupted)
