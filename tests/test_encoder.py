"Encoders: shapes, padding, batch 1, precision, names; and the torchvision shim in fresh processes."
import copy
import subprocess
import sys

import pytest
import torch

from mask_match.config import EncoderConfig, PRESETS
from mask_match.encoder import ENCODERS, make_encoder


def built(name, width=48, dropout=0.1):
    torch.manual_seed(0)
    return make_encoder(EncoderConfig(name=name, width=width, dropout=dropout))


@pytest.mark.parametrize('name', ENCODERS)
def test_shapes(name):
    encoder = built(name).eval()
    for height, width in ((32, 64), (48, 32), (40, 72), (33, 50)):
        features = encoder(torch.rand(2, 1, height, width))
        assert features.shape == (2, 48, -(-height//encoder.stride), -(-width//encoder.stride))


@pytest.mark.parametrize('name', ENCODERS)
def test_one_image_in_training_and_evaluation(name):
    encoder = built(name)
    image = torch.rand(1, 1, 32, 64)
    encoder(image).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())
    assert torch.isfinite(encoder.eval()(image)).all()


@pytest.mark.parametrize('name', ENCODERS)
def test_evaluation_of_an_image_does_not_depend_on_its_batch(name):
    encoder = built(name).eval()
    images = torch.rand(3, 1, 32, 64)
    together, alone = encoder(images)[1:2], encoder(images[1:2])
    assert (together - alone).abs().max() < 1e-3 * alone.std()


def test_padding_stays_outside_the_receptive_field():
    encoder = built('compact').eval()
    image = torch.rand(1, 1, 64, 384)
    padded = torch.nn.functional.pad(image, (0, 64, 0, 32))
    wide = encoder(torch.nn.functional.pad(image, (0, 64)))[..., :48]
    torch.testing.assert_close(encoder(image)[..., :28], wide[..., :28], atol=1e-4, rtol=1e-4)    # 20 cells before the border: exact
    assert encoder(padded).shape[-2:] == (12, 56)


def test_compact_is_small_and_the_others_are_the_fields():
    count = lambda e: sum(p.numel() for p in e.parameters())
    assert count(built('compact', 256)) <= 2.5e6
    densenet = built('densenet_b', 256)
    assert densenet.body(torch.rand(1, 1, 32, 32)).shape == (1, 684, 2, 2)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in densenet.body.modules()) == 1 + 2*48 + 2


@pytest.mark.parametrize('preset', PRESETS)
def test_presets_name_an_encoder(preset):
    config = PRESETS[preset]().encoder
    assert make_encoder(config).width == config.width


def test_weights_travel():
    encoder, other = built('compact').eval(), make_encoder(EncoderConfig(width=48)).eval()
    other.load_state_dict(encoder.state_dict())
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(encoder(image), other(image))
    torch.testing.assert_close(encoder(image), copy.deepcopy(encoder)(image))


def test_bfloat16_is_near_float32():
    encoder, image = built('compact', dropout=0.).train(), torch.rand(4, 1, 32, 64)
    exact = encoder(image)
    with torch.autocast('cpu', torch.bfloat16): near = encoder(image)
    assert near.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(exact.flatten(), near.float().flatten(), dim=0) > 0.99


def test_messages():
    with pytest.raises(ValueError, match="did you mean 'densenet_b'"): make_encoder(EncoderConfig(name='densenet'))
    with pytest.raises(ValueError, match=r'takes images \[b 1 H W\]; got \[2, 3, 32, 32\]'): built('compact')(torch.rand(2, 3, 32, 32))


def fresh(code): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)


def test_torchvision_imports_in_a_fresh_process():
    done = fresh("import torch; from mask_match.compat import torchvision; from torchvision.transforms import v2; torchvision.models.resnet18();"
                 "print(torch.ops.torchvision.nms(torch.tensor([[0., 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]]), torch.tensor([.1, .9, .5]), 0.5).tolist())")
    assert done.returncode == 0 and done.stdout.strip() == '[1, 2]', done.stderr


def test_torchvision_is_not_imported_before_it_is_needed():
    done = fresh("import sys, mask_match, mask_match.encoder; print('torchvision' in sys.modules)")
    assert done.stdout.strip() == 'False', done.stderr


def test_nothing_is_declared_on_cuda_builds():
    "Pretend that torch was built with CUDA: then the real operators must be found, or torchvision's own error seen."
    done = fresh("import torch; torch.version.cuda = '13.0'\n"
                 "try:\n    import mask_match.compat as c; print(c._declared)\n"
                 "except RuntimeError as e: print(e)")
    assert done.stdout.strip() in ('[]', 'operator torchvision::nms does not exist'), done.stderr
