"""Judges SBOMs by the libraries of their own projects: arguments are an SPDX and a CycloneDX file."""

import json
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from license_expression import get_spdx_licensing
from packageurl import PackageURL
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

spdx_file, cyclonedx_file = sys.argv[1:]
faults = []

document = parse_file(spdx_file)
faults += [f"{m.context.spdx_id}: {m.validation_message}" for m in validate_full_spdx_document(document)]

with open(cyclonedx_file, encoding="utf-8") as file:
    text = file.read()
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
if fault is not None:
    faults.append(f"CycloneDX: {fault}")

components = json.loads(text)["components"]
names = {(c["name"], c.get("version")) for c in components}
if names != {(p.name, p.version) for p in document.packages if p.spdx_id != "SPDXRef-image"}:
    faults.append("the two documents name different parts")
known = {c["bom-ref"] for c in components} | {"image"}
for entry in json.loads(text)["dependencies"]:
    faults += [f"{entry['ref']} needs {need}, which is no part" for need in entry["dependsOn"] if need not in known]
for component in components:
    if "purl" in component:
        purl = PackageURL.from_string(component["purl"])
        if (purl.name, purl.version) != (component["name"], component["version"]):
            faults.append(f"{component['purl']} is not {component['name']} {component['version']}")
    for licence in component.get("licenses", []):
        if "expression" in licence:
            info = get_spdx_licensing().validate(licence["expression"])
            faults += [f"{component['name']}: {error}" for error in info.errors]

print("\n".join(faults) if faults else f"{len(components)} parts")
sys.exit(bool(faults))
