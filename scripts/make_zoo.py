"""The model zoo: trains its teams, measures what their deployment costs, and puts them, signed, into models/.

    python scripts/make_zoo.py --key zoo.pem                  # what is not in models/ yet, one after the other
    python scripts/make_zoo.py --key zoo.pem --again sum-to-10-magpo
    python scripts/make_zoo.py --described                    # the index and the table of docs/zoo.md alone

Each team is an ordinary run in build/zoo, by hmarl-train, hmarl-export and hmarl-gap: what was killed goes on where it
stopped. Its card names the command, with every setting, that makes it again with the same weights on the same machine.
The private key is no part of the repository; --key names it, where it is kept.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hmarl.runtime import command_line
from hmarl.runtime.bundle import Bundle, load_bundle, to_plain, write_bundle
from hmarl.runtime.command_line import PATH, flag, option
from hmarl.runtime.signing.keys import Signer, read_passphrase
from hmarl.sdk.errors import UsageError, unknown_name
from hmarl.sdk.files import write_text
from hmarl.sdk.gap.card import card_section
from hmarl.sdk.gap.document import FILE, read_gap
from hmarl.sdk.zoo.index import LIMIT_BYTES, SCHEMA_VERSION, SHIPPED_INDEX, Entry, Index, write_index

ROOT = Path(__file__).resolve().parents[1]
MODELS, WORK, PAGE = ROOT / "models", ROOT / "build" / "zoo", ROOT / "docs" / "zoo.md"
BEGIN, END = "<!-- made by scripts/make_zoo.py -->", "<!-- until here -->"
_SECTION = "## The price of deployment"


@dataclass(frozen=True)
class Team:
    """One bundle of the zoo, and how it is made.

    Attributes:
        name: of the bundle.
        about: what it is there to show.
        train: the words after ``hmarl-train``, without ``--out``; none for a bundle whose run was not kept, of which
            only signature and price are made here.
        export: further words of ``hmarl-export``.
        gap: further words of ``hmarl-gap``.
    """

    name: str
    about: str
    train: str
    export: str = ""
    gap: str = "--episodes 50 --faults delay=2 --faults loss=0.2 --faults agent_0:out=0"


TEAMS = (
    Team(
        "simple-spread-hcpo",
        "the bundle of the tutorials: HCPO with local conductors",
        "",
        gap="--episodes 50 --faults delay=2 --faults loss=0.2",
    ),
    Team(
        "coordsum-hcpo",
        "a common-knowledge conductor: all agents change what they do at once, without a message",
        "hcpo --env coordsum/3x10-30 --set env.record=own --steps 500000 --seed 100 --set run.threads=1 "
        "--set run.evaluation_interval=50000 --set run.evaluation_episodes=32",
        gap="--episodes 24 --faults delay=1 --faults loss=0.2 --faults agent_0:out=0",
    ),
    Team(
        "sum-to-10-magpo",
        "a guider that is held where local policies can follow: every sum is right",
        "magpo --env coordsum/sum-to-10-full --steps 40000 --seed 1 --set run.threads=1",
        gap="--episodes 100 --faults agent_0:out=0",
    ),
    Team(
        "sampling-himpo-students",
        "recurrent students of a hierarchy that exchanges messages, seven agents of one policy",
        "himpo --env vmas/sampling --set env.n_agents=7 --steps 100000 --seed 100 --set run.threads=1 "
        "--set algorithm.worker_reward=window --set algorithm.gamma=0.99 --set algorithm.goal_interval=5 "
        "--set run.evaluation_interval=16666 --set run.evaluation_episodes=32",
        export="--set distillation.rounds=3 --set distillation.environments=32 "
        "--set distillation.evaluation_episodes=32",
        gap="--episodes 20 --faults delay=2",
    ),
    Team(
        "halfcheetah-2x3-hamdpo",
        "a robot in MuJoCo, two agents with three joints each; HAMDPO",
        "hamdpo --env mamujoco/HalfCheetah-2x3 --steps 500000 --seed 104 --set run.threads=1 "
        "--set run.evaluation_interval=50000 --set run.evaluation_episodes=32 --set env.threads=1",
        gap="--episodes 24 --faults delay=1",
    ),
    Team(
        "smax-2s3z-recurrent-mappo",
        "policies that remember, and action masks: a battle of five units",
        "mappo --env smax/2s3z --set algorithm.recurrent=true --steps 300000 --seed 1 --set run.threads=1",
        gap="--episodes 32 --faults delay=2",
    ),
    Team(
        "navigation-interchangeable-happo",
        "interchangeable agents: one graph acts for any number of them",
        "happo --env vmas/navigation --set env.n_agents=3 --set algorithm.share_parameters=true "
        "--set algorithm.agent_identity=false --steps 100000 --seed 1 --set run.threads=1",
        gap="--episodes 20 --faults delay=2",
    ),
)


def program(name: str) -> str:
    """The command of this very environment, whatever PATH says."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def _run(*words: str) -> None:
    print(shlex.join(words), flush=True)
    subprocess.run(words, check=True, cwd=ROOT)


def commands(team: Team, key: Path, target: Path) -> list[list[str]]:
    """The command lines that make a team that is trained here; those whose results are there already left out."""
    run = WORK / team.name
    bundle, measured = run / "bundle", run / "gap"
    lines = []
    if not (run / "summary.json").exists():
        resumed = (run / "config.json").exists()
        how = ["--resume", str(run)] if resumed else [*shlex.split(team.train), "--out", str(run)]
        lines.append([program("hmarl-train"), *how])
    if not bundle.exists():
        lines.append([program("hmarl-export"), str(run), *shlex.split(team.export)])
    if not (measured / FILE).exists():
        resume = ["--resume"] if (measured / "plan.json").exists() else []
        lines.append([program("hmarl-gap"), str(run), *shlex.split(team.gap), *resume])
    signed = ["--name", team.name, "--sign", str(key), "--out", str(target)]
    return [*lines, [program("hmarl-export"), str(run), *shlex.split(team.export), *signed]]


def make(team: Team, key: Path) -> None:
    """Put a team into models/.

    Raises:
        CalledProcessError: one of the commands failed.
        UsageError: the bundle is larger than one of the zoo may be.
    """
    target = MODELS / team.name
    if team.train:
        for words in commands(team, key, target):
            _run(*words)
    else:
        _price(team, load_bundle(target), Signer(key, read_passphrase(None)))
    size_bytes = sum(map(len, _files(load_bundle(target)).values()))
    if size_bytes > LIMIT_BYTES:
        raise UsageError(f"{target}: got {size_bytes:,} bytes, expected at most {LIMIT_BYTES:,}")


def _price(team: Team, bundle: Bundle, signer: Signer) -> None:
    """Measure a bundle without its run, and put the section into its card; the graphs stay what they are."""
    measured = WORK / f"{team.name}.gap"
    if not (measured / FILE).exists():
        words = ["--bundle", str(bundle.path), *shlex.split(team.gap), "--out", str(measured)]
        _run(program("hmarl-gap"), *words, *(["--resume"] if (measured / "plan.json").exists() else []))
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    files["README.md"] = with_section(files["README.md"].decode(), card_section(read_gap(measured / FILE))).encode()
    write_bundle(bundle.path, to_plain(bundle.manifest), files, signer)


def with_section(card: str, section: str) -> str:
    """A card with the section on the price of deployment, in the place of one that is there, before the plots."""
    card = re.sub(rf"{re.escape(_SECTION)}\n.*?(?=^(?:## |!\[))", "", card, flags=re.DOTALL | re.MULTILINE)
    before = re.search(r"^(?:!\[|## Training)", card, re.MULTILINE)
    place = len(card) if before is None else before.start()
    return f"{card[:place]}{section}\n\n{card[place:]}"


def _files(bundle: Bundle) -> dict[str, bytes]:
    return {name: bundle.read(name) for name in bundle.manifest.files} | bundle.own_files()


# --- what is said of them --------------------------------------------------------------------------------------------


def entry_of(team: Team, bundle: Bundle) -> Entry:
    """The index's line of a bundle, as its card and manifest have it."""
    card = bundle.read("README.md").decode()
    value = re.search(r"^ +value: (\S+)$", card, re.MULTILINE)
    return Entry(
        name=team.name,
        task=bundle.manifest.environment.name,
        algorithm=bundle.manifest.algorithm,
        agents=len(bundle.manifest.agents),
        return_mean=None if value is None else float(value[1]),
        size_bytes=sum(map(len, _files(bundle).values())),
        sha256=bundle.sha256,
        about=team.about,
    )


def index_of(teams: Sequence[Team]) -> Index:
    """The index of those that are in models/."""
    made = [team for team in teams if (MODELS / team.name).is_dir()]
    return Index(SCHEMA_VERSION, [entry_of(team, load_bundle(MODELS / team.name)) for team in made])


def table(index: Index) -> str:
    """What docs/zoo.md shows, made from the cards."""
    lines = [
        "| team | task | algorithm | agents | return | price | seed, steps, made in | size |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(entry) for entry in index.models]
    lines += [f"\n**[{each.name}](../models/{each.name}/README.md)**: {each.about}." for each in index.models]
    return "\n".join(lines)


def _row(entry: Entry) -> str:
    bundle = load_bundle(MODELS / entry.name)
    card = bundle.read("README.md").decode()
    made = re.search(r"^hmarl \S+, seed (\d+), checkpoint at ([\d,]+) steps(?:, (\d+) s on (\d+) cores)?", card, re.M)
    assert made is not None, entry.name
    seconds = f", {int(made[3]):,} s" if made[3] else ""
    value = "" if entry.return_mean is None else f"{entry.return_mean:.2f}"
    return (
        f"| [{entry.name}](../models/{entry.name}/README.md) | `{entry.task}` | {entry.algorithm} | {entry.agents} | "
        f"{value} | {_lost(card)} | {made[1]}, {made[2]}{seconds} | {entry.size_bytes / 1000:.0f} kB |"
    )


def _lost(card: str) -> str:
    """Where the card says that deployment costs something: each rung that loses."""
    rows = re.findall(r"^\| (\S[^|]*) \| [^|]+ \| ([^|]*) \| (lost[^|]*) \|$", card, re.MULTILINE)
    if not rows:
        return "nothing lost" if _SECTION in card else "not measured"
    return "; ".join(f"{rung.removeprefix('served, ')} {difference.split(' ')[0]}" for rung, difference, _ in rows)


def describe() -> None:
    """Write the index and the table of the page anew."""
    index = index_of(TEAMS)
    write_index(SHIPPED_INDEX, index)
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text(PAGE, f"{before}{BEGIN}\n\n{table(index)}\n\n{END}{after}")


@command_line.command(
    "make_zoo.py",
    option("--key", "the private key by which they are signed", PATH, shown="FILE"),
    option("--again", "make this team, also where it is in models/ already; repeatable", many=True, shown="NAME"),
    flag("--described", "write the index and the table of docs/zoo.md from models/ alone"),
)
def main(key: Path | None, again: tuple[str, ...], described: bool) -> None:
    """Make the teams of the zoo, sign them, and describe them."""
    names = [team.name for team in TEAMS]
    for name in again:
        if name not in names:
            raise UsageError(f"--again: {unknown_name('team', name, names)}")
    if not described:
        if key is None:
            raise UsageError("--key: got nothing, expected the zoo's private key, or --described")
        for team in TEAMS:
            if team.name in again or (not again and not (MODELS / team.name / "model.sig").exists()):
                make(team, key)
    describe()


if __name__ == "__main__":
    sys.exit(command_line.run(main))
