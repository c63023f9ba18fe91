"""The guide shows what the scripts print, and names what there is."""

import re
import subprocess

from fake_cloud import SCRIPTS, Cloud

GUIDE = (SCRIPTS.parent / "docs/tpu.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)


def test_shown_output_is_what_the_scripts_print(cloud: Cloud):
    (settings,) = (block.split("\n", 1)[1] for block in BLOCKS if block.startswith("cat tpu.env\n"))
    (cloud.checkout / "tpu.env").write_text(settings)
    (cloud.checkout / "study.yaml").write_text("")
    shown = [block for block in BLOCKS if block.startswith("$ ")]
    assert len(shown) >= 4
    for block in shown:
        command, output = re.fullmatch(r"\$ ((?:[^\n]*\\\n)*[^\n]*)\n(.*)", block, flags=re.DOTALL).groups()
        environment = {name: value for name, value in cloud.environment.items() if not name.startswith("JAXIFT_")}
        done = subprocess.run(
            ["bash", "-c", command], cwd=cloud.checkout, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=True,
        )  # fmt: skip
        printed = done.stdout
        for folder, name in ((cloud.checkout, "/home/me/jaxift"), (cloud.home, "/home/me")):
            printed = printed.replace(re.sub(r"([ '])", r"\\\1", str(folder)), name)  # as bash quotes it
        assert printed == output


def test_the_guide_names_every_script_and_setting():
    scripts = {path.name for path in SCRIPTS.glob("*.sh")} - {"pack.sh"}  # setup.sh's own
    assert [name for name in sorted(scripts) if f"`{name}" not in GUIDE] == []
    settings = re.findall(r"^  \[([A-Z_]+)\]=", (SCRIPTS / "lib/settings.sh").read_text(), flags=re.MULTILINE)
    assert len(settings) > 15
    assert [name for name in settings if f"`JAXIFT_{name}`" not in GUIDE] == []


def test_its_flags_are_known_to_the_scripts():
    known = " ".join(path.read_text() for path in SCRIPTS.rglob("*.sh"))
    names = {f"--{name.lower().replace('_', '-')}" for name in re.findall(r"\[([A-Z_]+)\]=", known)}
    for line in re.sub(r"\\\n", " ", "\n".join(BLOCKS)).splitlines():
        if "tpu_scripts/" in line and not line.startswith("bash "):
            flags = re.findall(r"(?<=\s)--[a-z-]+", re.split(r"\s-- |#", line)[0])
            assert [flag for flag in flags if flag not in names and flag not in known] == [], line
