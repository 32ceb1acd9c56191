"""What a call gets and what comes of it, here and in the sandbox: the same, and nothing stays behind."""

import contextlib
import math
import socket
import textwrap

import pytest
import torch

pytest.importorskip("nbformat")
pytest.importorskip("resource", reason="grading is for Linux and macOS")

from support.notebooks import SOURCE
from support.sandbox import needs_sandbox

from aecourse import checks
from aecourse.checks import core, vae
from aecourse.checks.bans import Refused, banned
from aecourse.checks.calling import call_here
from aecourse.checks.parts import Affine, First
from aecourse.checks.student import ModuleProxy, Student
from aecourse.grading import submission, wire, worker
from aecourse.grading.remote import RemoteFunction
from aecourse.grading.sandbox import Limits
from aecourse.grading.session import Gone

WAYS = [
    pytest.param("here", id="in one process"),
    pytest.param("sandbox", id="in the sandbox", marks=needs_sandbox),
]


@contextlib.contextmanager
def session_with(source):
    """A child of the sandbox in which a cell with this source has been run."""
    text = __import__("nbformat").writes(SOURCE["elbo"])
    sandbox = worker._sandbox("bubblewrap", submission.Assignment.of("elbo", text).imports)
    with sandbox.open(Limits(), 60) as session:
        session.begin()
        assert not session.ask("cell", textwrap.dedent(source))[0]
        yield session


@contextlib.contextmanager
def namespace_of(source, way, *names):
    """The functions that a cell defines, as the tests find them."""
    source = "import torch\n" + textwrap.dedent(source)
    if way == "here":
        namespace = {"__name__": "__main__"}
        exec(source, namespace)
        yield namespace
    else:
        with session_with(source) as session:
            yield {name: RemoteFunction(session, name) for name in names}


def call(namespace, *arguments, name="f", **keywords):
    """The answers to one call."""
    function = namespace[name]
    calls = [(arguments, keywords)]
    return function.each(calls) if hasattr(function, "elsewhere") else call_here(function, calls)


# ---- what a call is given


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_arguments_that_are_functions_of_each_other_remain_it(way, order):
    """The student's own code differentiates one with respect to another; then the test does."""
    torch.manual_seed(0)
    mean, logvar = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    z = mean + (logvar / 2).exp() * torch.randn(5, 3, dtype=torch.float64)
    values = z.square().sum(1) * logvar.sum()
    given = (mean, logvar, z, values)
    source = f"""
        def f(*given):
            mean, logvar, z, values = (given[{list(order)}.index(i)] for i in range(4))
            total = (values * z.sum(1)).sum() + mean.sum()
            slopes = torch.autograd.grad(total, (mean, logvar, z, values), retain_graph=True)
            return (total, *slopes, [t.is_leaf for t in (mean, logvar, z, values)])
        """
    total = (values * z.sum(1)).sum() + mean.sum()
    slopes = torch.autograd.grad(total, given, retain_graph=True)
    with namespace_of(source, way, "f") as namespace:
        answers = call(namespace, *(given[i] for i in order))
        assert answers.error is None
        got, *own, leaves = answers.results[0]
        assert leaves == [True, True, False, False]
        again = torch.autograd.grad(got, given)
    for slope, right, later in zip(own, slopes, again):
        torch.testing.assert_close(slope, right)
        torch.testing.assert_close(later, right)


@pytest.mark.parametrize("way", WAYS)
def test_results_of_one_operation_are_told_apart(way):
    """Two of the arguments come from one node of the graph, of which a third uses both."""
    x, y = torch.linspace(-1, 1, 12).reshape(2, 6).requires_grad_().chunk(2, 1)
    product = (x * y).sum()
    source = """
        def f(x, y, product):
            return torch.autograd.grad(product, (x, y), allow_unused=True)
        """
    with namespace_of(source, way, "f") as namespace:
        got = call(namespace, x, y, product).results[0]
    torch.testing.assert_close(got, (y.detach(), x.detach()))


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_from_another_call_is_none(way):
    """What a call was given is no way into what a later one is given."""
    leaf = torch.ones(3, requires_grad=True)
    source = """
        kept = []
        def f(leaf, double):
            kept.append((leaf, double))
            return torch.autograd.grad(kept[0][1].sum(), kept[0][0])[0]
        """
    with namespace_of(source, way, "f") as namespace:
        first, second = (call(namespace, leaf, 2 * leaf) for _ in range(2))
    assert first.results[0].tolist() == [2, 2, 2]
    assert "an earlier call" in str(second.error)


@pytest.mark.parametrize("way", WAYS)
def test_memory_and_strides_are_as_they_are_here(way):
    whole = torch.arange(20.0).reshape(4, 5)
    secret = whole[3, 3:].clone()
    same, left, right, row, turned = whole[1:3], whole[:, :2], whole[:, 1:3], whole[0], whole.clone().T
    source = """
        def f(first, again, left, right, row, turned, part):
            one = first is again
            left += 100
            other = first.untyped_storage().data_ptr() != left.untyped_storage().data_ptr()
            z = part(right)
            z *= 0
            there = torch.empty(0).set_(left.untyped_storage())
            return one, right.clone(), row.clone(), turned.stride(), turned.is_contiguous(), there
        """
    with namespace_of(source, way, "f") as namespace:
        answers = call(namespace, same, same, left, right, row, turned, First())
        assert answers.error is None
        one, beside, top, strides, contiguous, there = answers.results[0]
    assert one is True
    assert beside.tolist() == [[0, 2], [0, 7], [0, 12], [0, 17]]  # both what was added and what was set to 0
    assert top.tolist() == [100, 0, 2, 3, 4]
    assert (strides, contiguous) == (turned.stride(), False)
    assert not torch.isin(secret, there).any()  # nothing crosses but what is given
    assert torch.equal(whole, torch.arange(20.0).reshape(4, 5))
    assert [answers.effects.changed(t) for t in (same, left, right, row, turned)] == [
        True,  # which is a part of the whole, as left is
        *(True, True, True, False),
    ]


HARM = {
    "nothing": ("pass", (False, False, False)),
    "other numbers": ("x.mul_(1.7)", (True, False, False)),
    "far numbers": ("x.fill_(1e30)", (True, False, False)),
    "NaN": ("x.fill_(float('nan'))", (True, False, False)),
    "through a view": ("x.view(-1)[0] = 7", (True, False, False)),
    "another shape": ("x.resize_(7)", (True, False, False)),
    "other strides": ("x.t_()", (True, False, False)),
    "no memory": ("x.untyped_storage().resize_(0)", (True, False, False)),
    "other data": ("x.data = torch.zeros(2)", (True, False, False)),
    "other data of another type": ("x.data = x.data.long()", (True, False, False)),
    "another storage": ("x.set_(torch.zeros(3))", (True, False, False)),
    "requires gradients": ("x.requires_grad_()", (False, True, False)),
    "slopes": ("x.requires_grad_(); (x * 2).sum().backward()", (False, True, True)),
    "slopes alone": ("x.requires_grad_().sum().backward(); x.requires_grad_(False)", (False, False, True)),
    "a slope that was set": ("x.grad = torch.ones_like(x)", (False, False, True)),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_call_does_is_told_and_undone(way):
    """To tensors, to tensors of a part and to those in keywords and lists."""
    source = "\n".join(
        f"def f{number}(x, part, *, key, many):\n    for x in (x, *part.tensors, key, *many):\n        {harm}"
        f"\n    many.clear()\n    return 1.0"
        for number, (harm, _) in enumerate(HARM.values())
    )
    given = [torch.arange(6.0).reshape(2, 3) for _ in range(4)]
    part, many = Affine(given[1]), [given[3]]
    with namespace_of(source, way, *(f"f{number}" for number in range(len(HARM)))) as namespace:
        for number, (harm, marks) in enumerate(HARM.values()):
            answers = call(namespace, given[0], part, key=given[2], many=many, name=f"f{number}")
            assert answers.error is None
            effects = answers.effects
            for tensor in given:
                assert (effects.changed(tensor), effects.required(tensor), effects.slopes(tensor)) == marks, (
                    harm
                )
            assert (effects.changed(part), effects.changed([many])) == (marks[0], marks[0])
            assert all(torch.equal(tensor, torch.arange(6.0).reshape(2, 3)) for tensor in given)
            assert not any(tensor.requires_grad or tensor.grad is not None for tensor in given)
            assert many == [given[3]]


@pytest.mark.parametrize("way", WAYS)
def test_what_a_backward_pass_inside_does_to_parameters_is_told_and_undone(way):
    """In a leaf, and in one that stands behind what was given."""
    leaf, hidden = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    double = 2 * hidden
    source = """
        def f(leaf, double):
            (leaf * double).sum().backward()
            with torch.no_grad():
                leaf += 1
            return (leaf * double).sum()
        """
    with namespace_of(source, way, "f") as namespace:
        answers = call(namespace, leaf, double)
        assert [answers.effects.slopes(tensor) for tensor in (leaf, double)] == [True, True]
        assert [answers.effects.changed(tensor) for tensor in (leaf, double)] == [True, False]
        assert [leaf.grad, hidden.grad] == [None, None]
        assert leaf.tolist() == [1, 1, 1]
        answers.results[0].backward()  # the result is that of the changed numbers, and so are its slopes
    assert leaf.grad.tolist() == [2, 2, 2]
    assert hidden.grad.tolist() == [4, 4, 4]


@pytest.mark.parametrize("way", WAYS)
def test_a_result_is_a_copy(way):
    """A later call changes none, and one that is an argument is not the argument here."""
    source = """
        kept = torch.zeros(2)
        def f(x):
            kept.add_(1)
            x.add_(1)
            return kept, x, {"x": x}
        """
    x = torch.zeros(2)
    with namespace_of(source, way, "f") as namespace:
        first, second = (call(namespace, x).results[0] for _ in range(2))
    assert [t.tolist() for t in (*first[:2], first[2]["x"])] == [[1, 1], [1, 1], [1, 1]]
    assert second[0].tolist() == [2, 2]
    assert x.tolist() == [0, 0]


@pytest.mark.parametrize("way", WAYS)
def test_results_require_gradients_as_they_do_there(way):
    source = """
        own = torch.nn.Parameter(torch.ones(2))
        def f(x):
            return x * own, own.detach(), x.detach() * 2
        """
    plain, leaf = torch.ones(2), torch.ones(2, requires_grad=True)
    with namespace_of(source, way, "f") as namespace:
        for x in (plain, leaf):
            result = call(namespace, x).results[0]
            assert [t.requires_grad for t in result] == [True, False, False]
        with torch.no_grad():
            assert not call(namespace, leaf).results[0][0].requires_grad
        slope = torch.autograd.grad(result[0].sum(), leaf, allow_unused=True)[0]
    assert slope.tolist() == [1, 1]


@pytest.mark.parametrize("way", WAYS)
def test_generators_go_on_as_a_call_leaves_them(way):
    source = """
        def f(one, two):
            return torch.randn(3, generator=one), torch.randn(3, generator=two)
        """
    ours, right = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    want = [torch.randn(3, generator=right) for _ in range(2)]
    with namespace_of(source, way, "f") as namespace:
        got = call(namespace, ours, ours).results[0]  # one and the same
    assert all(map(torch.equal, got, want))
    assert torch.equal(ours.get_state(), right.get_state())


@needs_sandbox
def test_no_state_that_a_student_chooses_is_the_global_one():
    """That it has moved is seen here; where to is up to nobody."""
    source = """
        def f(seed):
            if seed:
                torch.manual_seed(seed)
            return torch.rand(2)
        """
    with torch.random.fork_rng(devices=[]), namespace_of(source, "sandbox", "f") as namespace:
        states = []
        for seed in (5, 6, 6):
            torch.manual_seed(1)
            before = torch.get_rng_state()
            call(namespace, seed)
            states.append(torch.get_rng_state())
            assert not torch.equal(before, states[-1])
        assert all(torch.equal(state, states[0]) for state in states)
        torch.manual_seed(1)
        first = call(namespace, 0).results[0]
        second = call(namespace, 0).results[0]  # which goes on where the first one ended
        torch.manual_seed(1)
        again = call(namespace, 0).results[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_a_test_leaves_the_global_random_state_as_it_was():
    def gaussian_kl(mean, logvar):
        torch.manual_seed(77)
        return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1)

    before = torch.get_rng_state()
    checks.grade("gaussian_kl", "values", {"gaussian_kl": gaussian_kl}, seed=1)
    checks.check("gaussian_kl", gaussian_kl)
    assert torch.equal(torch.get_rng_state(), before)


# ---- what the child may ask, and send


@needs_sandbox
@pytest.mark.parametrize(
    "words",
    [
        '("slopes", 0, 0, torch.ones(3))',  # of a leaf
        '("slopes", 0, 7, torch.ones(3))',
        '("slopes", 9, 1, torch.ones(3))',
        '("slopes", 0, 1, torch.ones(4))',
        '("slopes", 0, 1, torch.ones(3).double())',
        '("slopes", 0, 1, None)',
        '("slopes", 0)',
        '("slopes",)',
        '("slopes", "0", "1", "x")',
    ],
)
def test_a_question_that_is_none_ends_the_talk(words):
    source = f"""
        import gc, socket, torch
        from aecourse.grading import wire
        def f(leaf, double):
            channel = next(o for o in gc.get_objects() if isinstance(o, socket.socket) and o.fileno() > 2)
            wire.send(channel, {words})
            return leaf
        """
    leaf = torch.ones(3, requires_grad=True)
    with session_with(source) as session, pytest.raises(Gone, match="nonsense"):
        RemoteFunction(session, "f")(leaf, 2 * leaf)


def received(header, content=b""):
    """What the trusted side makes of a message."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        text = wire.encode(header).encode()
        text += b" " * (-len(text) % wire.ALIGNED)
        ours.sendall(wire.LENGTHS.pack(len(text), len(content)) + text + content)
        ours.shutdown(socket.SHUT_WR)
        return wire.receive(theirs)


@pytest.mark.parametrize("shape", [[2**26 + 1, 0], [0, 2**40], [2**14, 0, 2**14], [0] * 3 + [10**9]])
def test_sizes_count_where_there_is_no_number(shape):
    """Nothing is multiplied by such a size before it is refused."""
    with pytest.raises(wire.WireError, match="too much data"):
        received({"value": {"tensor": 0}, "tensors": [["float32", shape, False, True]]})


def test_sizes_add_up():
    each = ["float32", [2**20, 0], False, True]
    value = {"list": [{"tensor": number} for number in range(65)]}
    with pytest.raises(wire.WireError, match="too much data"):
        received({"value": value, "tensors": [each] * 65})
    assert received({"value": {"tensor": 0}, "tensors": [each]}).shape == (2**20, 0)


@pytest.mark.parametrize(
    "kind",
    [
        ["float32", [1], False, True, [1], 0, 1],  # strides are for the trusted side to send
        ["float32", [2], False, True, [1], -1, 2],
        ["float32", [-1], False, True],
        ["float32", [1.0], False, True],
        ["float32", [1] * 17, False, True],
    ],
)
def test_no_student_says_where_a_tensor_lies(kind):
    with pytest.raises(wire.WireError):
        received({"value": {"tensor": 0}, "tensors": [kind]}, bytes(8))


@pytest.mark.parametrize("size", [(1_000_000, 0), (100_000, 6)])
@pytest.mark.parametrize("name", ["hidden", "other"])
def test_a_module_of_far_too_many_parameters_is_refused(size, name):
    class Large(torch.nn.Module):
        def __init__(self, *_):
            super().__init__()
            setattr(self, name, torch.nn.Module())
            getattr(self, name).weight = torch.nn.Parameter(torch.zeros(size))

    student = Student(core.find("Encoder"), {"Encoder": Large})
    with pytest.raises(core.Wrong, match="more than 500,000 parameters"):
        ModuleProxy.construct(student, 6, 5, 3).state()


def test_no_tensor_is_made_of_a_students_sizes(monkeypatch):
    monkeypatch.setattr(vae, "network_state", None)
    sizes = vae._vae_sizes(64, 2, 10**12, 10**13)
    assert sizes["encoder.hidden.weight"] == (10**12, 64)
    assert sizes["decoder.logits.weight"] == (64, 10**13)


# ---- comparing


def test_same_takes_infinities_for_what_they_are():
    inf, nan = math.inf, math.nan
    for got, want, right in [
        *((inf, inf, True), (-inf, -inf, True), (inf, -inf, False), (inf, 1e300, False), (1e300, inf, False)),
        *((nan, 1.0, False), (nan, inf, False), (1.0, nan, False), (0.0, nan, False), (nan, 0.0, False)),
    ]:
        pair = [torch.tensor([x, 1.0], dtype=torch.float64) for x in (got, want)]
        for rtol, atol in ((1e-4, 1e-4), (0, 0), (1e300, 1e300)):
            assert core.same(*pair, rtol, atol) is right, (got, want)


# ---- ready-made answers

KL = ("torch.distributions.kl",)
P, Q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(1.0, 2.0)


def refuses(function) -> bool:
    try:
        with banned(KL):
            function()
    except Refused:
        return True
    return False


def test_a_copy_of_a_ready_made_answer_refuses_too():
    from types import FunctionType

    from torch.distributions import kl

    for names in [
        (),
        ("torch.special",),
        ("torch.distributions.normal",),
    ]:  # other tasks
        with banned(names):
            pass
    copies = [FunctionType(kl._kl_normal_normal.__code__, vars(kl))]
    right = float(kl.kl_divergence(P, Q))
    for _ in range(2):
        assert refuses(lambda: copies[0](P, Q))
        assert float(copies[0](P, Q)) == right
    copies.clear()
    assert refuses(lambda: kl.kl_divergence(P, Q))
    assert not refuses(lambda: P.log_prob(P.mean))
    assert float(kl.kl_divergence(P, Q)) == right


def test_a_second_copy_of_its_module_refuses_too(monkeypatch):
    import sys
    from importlib.util import module_from_spec, spec_from_file_location

    from torch.distributions import kl

    spec = spec_from_file_location("torch.distributions.mine", kl.__file__)
    mine = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, mine)
    spec.loader.exec_module(mine)
    assert refuses(lambda: mine._kl_normal_normal(P, Q))
    assert float(mine._kl_normal_normal(P, Q)) > 0


def test_a_ban_that_is_lifted_is_noticed():
    from torch.distributions import kl

    code = kl._kl_normal_normal.__code__

    def lift():
        kl._kl_normal_normal.__code__ = code
        return kl._kl_normal_normal(P, Q)

    assert refuses(lift)
    assert kl._kl_normal_normal.__code__ is code
