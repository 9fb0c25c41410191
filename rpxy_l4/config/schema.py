"""The JSON Schema of the file, for editors and other tools. Names, meanings and defaults come from the model."""

from __future__ import annotations

from typing import Any

from rpxy_l4.config.model import Config


def json_schema() -> dict[str, Any]:
    """Return the schema, JSON Schema draft 2020-12.

    It checks each value by itself. What several keys mean together, and which names and addresses are legal to the last
    letter, only the parser knows.
    """
    schema = Config.model_json_schema(mode="validation")
    for table in (schema, *schema["$defs"].values()):
        table["description"] = _one_line(table["description"])
        for key in table["properties"].values():
            if "description" in key:
                key["description"] = _one_line(key["description"])
            # TOML has no null; an absent table or array is not the same as one written empty.
            if "default" in key and (key["default"] is None or isinstance(key["default"], dict | list)):
                del key["default"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _one_line(text: str) -> str:
    return " ".join(text.split())
