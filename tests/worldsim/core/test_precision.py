"""The precision follows the hardware: bfloat16 where it is computed in, float32 elsewhere. The hardware is a stand-in here."""

import pytest
import torch

from worldsim.core import precision as device


@pytest.mark.parametrize(
    ("cuda", "cuda_bf16", "onednn", "amx", "avx512", "expected"),
    [
        (True, True, True, False, False, "bf16-mixed"),
        (True, False, True, True, True, "32-true"),  # a GPU of before Ampere trains, whatever the CPU can do
        (False, False, True, True, False, "bf16-mixed"),
        (False, False, True, False, True, "bf16-mixed"),
        (False, False, True, False, False, "32-true"),
        (False, False, False, True, True, "32-true"),  # a torch without oneDNN uses neither
    ],
)
def test_precision(monkeypatch, cuda, cuda_bf16, onednn, amx, avx512, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    # Emulated bfloat16 is always "supported", and slow.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or cuda_bf16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert device.precision() == expected
    assert device.precision(cuda=False) == ("bf16-mixed" if onednn and (amx or avx512) else "32-true"), "the CPU computes"


def test_detection_runs_on_this_machine():
    assert device.precision() in ("bf16-mixed", "32-true")
    assert isinstance(device.has_avx512_bf16(), bool)
