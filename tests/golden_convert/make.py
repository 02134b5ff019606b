"""Write the golden digests of this directory with llama.cpp's own converter (see README.md).

usage: python tests/golden_convert/make.py --peer LLAMA_CPP/convert_hf_to_gguf.py --work DIRECTORY [CASE …]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support import golden
from tests.support.gguf_file import GgufFile

# The peer knows a pre-tokenizer by the hash of one text's tokens, so it cannot know a cut vocabulary: it is told.
# For V3.2 it wants tokenizer_config.json edited first, for GLM it insists on GLM's special tokens: neither here.
TOLD = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import conversion.base, conversion.deepseek, conversion.glm
if sys.argv[2] == "told":
    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "deepseek-v3"
for model in conversion.deepseek.DeepseekV32Model, conversion.glm.Glm4MoeLiteModel, conversion.glm.GlmMoeDsaModel:
    model.set_vocab = conversion.base.TextModel._set_vocab_gpt2
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@click.command()
@click.option("--peer", type=click.Path(exists=True, path_type=Path), required=True, help="convert_hf_to_gguf.py")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="for checkpoints and files; kept")
@click.argument("cases", nargs=-1)
def main(peer: Path, work: Path, cases: tuple[str, ...]) -> None:
    """Convert the cases (default: all) with the peer and store the digests."""
    for name in cases or golden.CASES:
        case = golden.CASES[name]
        checkpoint = work / name / case.directory
        if not checkpoint.exists():
            case.write(work / name)
        records = {}
        for kind in golden.TYPES:
            out = work / name / f"peer-{kind}.gguf"
            if not out.exists():
                run_peer(peer, checkpoint, out, kind, *case.told, knows=case.tokenizer != "bundled")
            with GgufFile(out) as file:
                records[kind] = golden.record_of(file)
        golden.save(name, records)
        click.echo(f"{name}: {len(records['F32']['tensors'])} tensors")


def run_peer(peer: Path, checkpoint: Path, out: Path, kind: str, *options: str, knows: bool) -> None:
    """Run the peer, with the pre-tokenizer's name given unless it knows it."""
    peer = peer.resolve()
    start = ["-c", TOLD, str(peer.parent), "" if knows else "told", str(peer)]
    command = [sys.executable, *start, str(checkpoint), "--outfile", str(out), "--outtype", kind.lower(), *options]
    environment = os.environ | {"PYTHONPATH": str(peer.parent / "gguf-py")}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
