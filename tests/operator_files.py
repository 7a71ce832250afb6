"""A folder of operator measurements in LLMServingSim's format, of a tiny LLM."""

from __future__ import annotations

from pathlib import Path

OPERATOR_FILES = {
    "dense": "layer,tokens,time_us\nqkv_proj,1,100\nqkv_proj,100,200\n"
    "embedding,1,3\nembedding,100,3\nfinal_layernorm,1,2\nfinal_layernorm,100,2\n",
    "per_sequence": "layer,sequences,time_us\nlm_head,1,50\nlm_head,100,60\n",
    "attention": "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n"
    "0,0,1,1024,5\n0,0,128,1024,80\n512,0,0,0,70\n512,0,1,1024,80\n512,0,128,1024,150\n",
}


def write_operator_files(folder: Path) -> Path:
    """Write the files, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in OPERATOR_FILES.items():
        (folder / f"{name}.csv").write_text(text)
    return folder
