"""Types of keys that several sections of a scenario file have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from helixsim.yaml_files import Seconds

FileName = Annotated[str, Field(min_length=1, max_length=4096)]
"""Path of a file, relative to the folder of the scenario file."""

ExtensionName = Annotated[str, Field(min_length=1, max_length=200)]
"""Name of an extension; the registries say whether there is one."""

Share = Annotated[float, Field(gt=0, le=1)]
Duration = Annotated[Seconds, Field(gt=0, le=1e7)]
