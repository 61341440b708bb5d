import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from marginlab.measures import lipschitz_upper
from marginlab.measures.functional import convolution_norm, jacobian_norms
from marginlab.measures.lipschitz.spectral_bound import _walk
from marginlab.models import Backbone, EmbeddingLayer, Projector

FEW = settings(
    max_examples=min(8, settings().max_examples // 3)
)  # tracing takes a tenth of a second


def matrix(function, shape):
    """Of a linear function, after its value at 0 is taken off."""
    with torch.no_grad():
        zero = function(torch.zeros(1, *shape, dtype=torch.float64))
        columns = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, 1, *shape)
        return torch.stack([(function(column) - zero).flatten() for column in columns], 1)


def norm(function, shape):
    return float(torch.linalg.matrix_norm(matrix(function, shape), 2))


@given(
    st.integers(0, 2**20),
    st.sampled_from(
        [
            (3, 1, 1, 1),
            (3, 2, 1, 1),
            (1, 2, 0, 1),
            (2, 2, 0, 1),
            (3, 1, 2, 2),
            (5, 3, 4, 1),
            (4, 1, 0, 1),
            (3, 2, 2, 2),
            (2, 3, 1, 3),
        ]
    ),
    st.sampled_from([(1, 1, 1), (3, 2, 1), (2, 4, 2), (4, 4, 4)]),
    st.integers(7, 9),
)
def test_a_convolution_is_bounded_and_not_by_much(seed, form, channels, size):
    (k, stride, padding, dilation), (inner, out, groups) = form, channels
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inner // groups, k, k, generator=generator, dtype=torch.float64)

    def function(x):
        return nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups)

    exact = norm(function, (inner, size, size + 1))
    upper = convolution_norm(
        weight, (size, size + 1), stride=stride, dilation=dilation, groups=groups
    )
    assert exact <= upper * (1 + 1e-12)
    if stride == 1 and padding:
        assert upper <= 1.35 * exact
    if k <= stride and dilation == 1:
        assert upper <= exact * (1 + 1e-9)  # windows that do not overlap
    assert convolution_norm(
        weight, (size, size + 1), stride=stride, dilation=dilation, groups=groups, budget=1
    ) == pytest.approx(upper, rel=1e-12)


@given(st.integers(0, 2**20), st.integers(1, 4), st.integers(1, 3))
def test_one_and_three_dimensions_too(seed, k, stride):
    generator = torch.Generator().manual_seed(seed)
    for function, weight, size in (
        (nn.functional.conv1d, torch.randn(2, 3, k, generator=generator), (9,)),
        (nn.functional.conv3d, torch.randn(2, 1, k, 2, 1, generator=generator), (4, 3, 3)),
    ):
        wide = weight.double()
        exact = norm(lambda x, f=function, w=wide: f(x, w, stride=stride), (wide.shape[1], *size))
        assert exact <= convolution_norm(weight, size, stride=stride) * (1 + 1e-9)


def test_it_is_exact_for_one_linear_layer_and_for_orthogonal_ones():
    torch.manual_seed(0)
    layer = nn.Linear(5, 3).double().eval()
    bound = lipschitz_upper(layer, torch.zeros(1, 5, dtype=torch.float64))
    assert bound.upper == pytest.approx(
        float(torch.linalg.matrix_norm(layer.weight.detach(), 2)), rel=1e-9
    )
    turn = (
        nn.Sequential(*[nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)) for _ in range(2)])
        .double()
        .eval()
    )
    assert lipschitz_upper(turn, torch.zeros(1, 4, dtype=torch.float64)).upper == pytest.approx(
        1, rel=1e-6
    )


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x):
        out = self.second(nn.functional.relu(self.norm(self.first(x))))
        out += x
        return torch.cat([out, 0.5 * x, -x[:, :1]], 1)


def settle(net, generator):
    """Batch normalisation with statistics and weights of its own."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator))
            layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.1)
            layer.weight.data.copy_(torch.randn(layer.num_features, generator=generator))
    return net.double().eval()


@FEW
@given(st.integers(0, 2**20), st.sampled_from(["perceptron", "convolutions", "residual", "smooth"]))
def test_what_is_seen_from_below_is_never_above(seed, kind):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    pools = [nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1), nn.Flatten(), nn.Dropout()]
    norm = nn.GroupNorm(1, 3, eps=0.5)
    shape, net = {
        "perceptron": (
            (5,),
            nn.Sequential(Projector((5, 7, 4), batch_norm=True), nn.LeakyReLU(1.5), nn.Tanh()),
        ),
        "convolutions": (
            (2, 8, 8),
            nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), *pools),
        ),
        "residual": ((3, 4, 4), nn.Sequential(Residual(3), nn.ReLU6(), *tail)),
        "smooth": (
            (2, 4, 4),
            nn.Sequential(
                nn.Conv2d(2, 3, 3), nn.SiLU(), nn.GELU(), norm, nn.Softplus(), *tail, nn.Sigmoid()
            ),
        ),
    }[kind]
    net = settle(net, generator)
    x = torch.randn(12, *shape, generator=generator, dtype=torch.float64)
    bound = lipschitz_upper(net, x)
    assert float(jacobian_norms(net, x).max()) <= bound.upper
    with torch.no_grad():
        y = net(x).flatten(1)
    seen = torch.pdist(y) / torch.pdist(x.flatten(1))
    assert float(seen.max()) <= bound.upper
    assert bound.upper < 1e5
    assert str(" x ".join(map(str, shape))) in bound.meaning


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


F = nn.functional
CONSTANT = torch.tensor([[1.0, -3.0, 0.5, 2.0]], dtype=torch.float64)
KNOWN = {  # name: function, shape, and the constant where it is attained
    "mean": (lambda x: x.mean((2, 3)), (2, 3, 4), 12**-0.5),
    "average": (lambda x: F.avg_pool2d(x, 2), (1, 4, 4), 0.5),
    "average in one dimension": (lambda x: F.avg_pool1d(x, 3, 3), (1, 9), 3**-0.5),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 2), (1, 4, 4), 0.5),
    "adaptive in one dimension": (lambda x: F.adaptive_avg_pool1d(x, 3), (1, 6), 0.5**0.5),
    "largest in one dimension": (lambda x: F.max_pool1d(x, 3, 1), (1, 6), 3**0.5),
    "convolution in one dimension": (
        lambda x: F.conv1d(x, 2 * torch.ones(1, 1, 2, dtype=torch.float64), stride=2),
        (1, 6),
        8**0.5,
    ),
    "convolution in three dimensions": (
        lambda x: F.conv3d(x, torch.full((1, 1, 1, 1, 1), 4.0, dtype=torch.float64)),
        (1, 2, 2, 2),
        4.0,
    ),
    "largest": (lambda x: F.max_pool2d(x, 2), (1, 4, 4), 1.0),
    "largest of overlapping": (lambda x: F.max_pool2d(x, 3, 2, 1), (1, 8, 8), 2.0),
    "product": (lambda x: x * CONSTANT, (4,), 3.0),
    "product the other way": (lambda x: CONSTANT * x, (4,), 3.0),
    "quotient": (lambda x: x / CONSTANT, (4,), 2.0),
    "broadcast sum": (lambda x: x[:, :, None] + torch.zeros(5, dtype=torch.float64), (3,), 5**0.5),
    "difference": (lambda x: torch.sub(CONSTANT, x, alpha=2), (4,), 2.0),
    "twice": (lambda x: x + 2 * x, (4,), 3.0),
    "concatenation": (lambda x: torch.cat([x, 2 * x, CONSTANT], 1), (4,), 5**0.5),
    "stack": (lambda x: torch.stack([x, x]), (4,), 2**0.5),
    "matrix": (lambda x: x @ CONSTANT.T, (4,), float(CONSTANT.norm())),
    "moved": (lambda x: x.permute(0, 2, 1).reshape(1, -1).unsqueeze(1)[:, 0, 1:], (2, 3), 1.0),
    "padded": (lambda x: F.pad(x, (1, 2)), (4,), 1.0),
    "parts": (lambda x: x.split(2, 1)[1], (4,), 1.0),
    "cast": (lambda x: x.float().double(), (4,), 1.0),
    "same": (
        lambda x: F.conv2d(x, torch.ones(1, 1, 1, 1, dtype=torch.float64) * 3, padding="same"),
        (1, 4, 4),
        3.0,
    ),
    "relu6": (F.relu6, (4,), 1.0),
    "abs": (lambda x: -x.abs(), (4,), 1.0),
    "leaky": (lambda x: F.leaky_relu(x, 2.0), (4,), 2.0),
    "sigmoid": (torch.sigmoid, (4,), 0.25),
    "gelu": (F.gelu, (4,), 1.13),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), (4,), 1.13),
    "silu": (F.silu, (4,), 1.1),
    "softplus": (lambda x: F.softplus(x, beta=3), (4,), 1.0),
    "constant": (lambda x: CONSTANT * 1.0, (4,), 0.0),
}


@pytest.mark.parametrize("shape", sorted({shape for _, shape, _ in KNOWN.values()}), ids=str)
def test_the_constant_of_each_operation(shape):
    """One network with all operations on inputs of one shape, since tracing takes long."""
    known = {
        name: (function, constant)
        for name, (function, own, constant) in KNOWN.items()
        if own == shape
    }
    net = Call(lambda x: tuple(function(x) for function, _ in known.values())).eval()
    results, _ = _walk(net, torch.zeros(1, *shape, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(50, 1, *shape, generator=generator, dtype=torch.float64)
    x[-20:] = torch.linspace(-4, 4, 20, dtype=torch.float64).view(-1, *[1] * (len(shape) + 1))
    near = x + 0.01 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    for (name, (function, constant)), result in zip(known.items(), results, strict=True):
        assert result == pytest.approx(constant, rel=1e-6), name
        moved = torch.stack(
            [
                (function(a) - function(b)).norm() / (a - b).norm()
                for a, b in zip(x, near, strict=True)
            ]
        )
        # rounding of the cast to float32
        assert float(moved.max()) <= result * (1 + 1e-4) + 1e-12, name
        assert float(moved.max()) >= 0.2 * result, name
    assert lipschitz_upper(net, torch.zeros(1, *shape, dtype=torch.float64)).upper == pytest.approx(
        sum(r**2 for r in results) ** 0.5
    )


def test_slopes_of_smooth_activations_are_below_their_constants():
    x = torch.linspace(-8, 8, 200001, dtype=torch.float64, requires_grad=True)
    for function, constant in (
        (F.gelu, 1.13),
        (lambda x: F.gelu(x, approximate="tanh"), 1.13),
        (F.silu, 1.1),
        (torch.sigmoid, 0.25),
    ):
        slope = float(torch.autograd.grad(function(x).sum(), x)[0].abs().max())
        assert 0.99 * constant < slope <= constant


def test_largest_of_overlapping_windows_is_attained():
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    y = x.clone()
    y[0, 0, 3, 3] = 1  # in four windows of 3 x 3 at stride 2
    assert float((F.max_pool2d(y, 3, 2, 1) - F.max_pool2d(x, 3, 2, 1)).norm()) == 2


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_backbone_is_bounded(norm):
    torch.manual_seed(0)
    backbone = Backbone(
        "resnet18",
        stem="imagenet",
        width=1 / 16,
        norm=norm,
        activation="silu" if norm == "batch" else "relu",
    )
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(backbone, EmbeddingLayer(backbone.dim, 4)).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
    images = torch.rand(4, 3, 32, 32, generator=generator)
    bound = lipschitz_upper(net, images)
    assert float(jacobian_norms(net, images).max()) <= bound.upper < float("inf")
    names = [layer.layer for layer in bound.layers]
    assert "0.net.layer1.0.conv1" in names
    # division by the standard deviation of pixels
    assert bound.layers[0].constant == pytest.approx(1 / 0.224)
    assert [layer.operation for layer in bound.layers].count("conv2d") == 21


class Mean(nn.Module):
    def forward(self, x):
        return nn.functional.normalize(x, dim=1)


def test_unknown_operations_are_refused_by_name_and_layer():
    x = torch.zeros(1, 4)
    for net, words in (
        (nn.Sequential(nn.Linear(4, 4), Mean()), r"linalg_vector_norm.default in layer '1'"),
        (nn.Sequential(nn.Softmax(-1)), r"softmax.* in layer '0'"),
        (Call(lambda x: x * x), "mul.Tensor"),
        (Call(lambda x: 1 / x), "reciprocal|div.Tensor"),
        (Call(lambda x: x @ x.T), "matmul|mm"),
        (Call(lambda x: x.long()), "is not known"),
        (Call(lambda x: F.pad(x, (1, 1), mode="circular")), "is not known"),
    ):
        with pytest.raises(ValueError, match=words):
            lipschitz_upper(net.eval(), x)
    pool = nn.AvgPool2d(2, 1, 1, count_include_pad=False).eval()
    for net in (pool, nn.AdaptiveAvgPool2d(3)):
        with pytest.raises(ValueError, match="not with these arguments"):
            lipschitz_upper(net.eval(), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="training mode"):
        lipschitz_upper(nn.Linear(4, 4), x)
