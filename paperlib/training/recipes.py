"""Every trained system of the comparison as data: what it is built of, what it starts from, what it learns from."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from paperlib.config.plugins import load_extension
from paperlib.config.schema import Profile, TrainConfig
from paperlib.errors import MissingError, ProfileError, hint
from paperlib.training.losses import Collaboration, CrossEntropy, Routing, Trades
from paperlib.training.threats import Clean, RandomFGSM, RandomPGD, ResizedL2, Strike, Threat
from paperlib.training.threats import Mixture as OneOf
from paperlib.training.trainer import Turn

# The paper's nine: one benign expert, four trained on FGSM, four on PGD.
EXPERTS = tuple(f"expert-{i}" for i in range(9))
EXPERT_KINDS = ("benign", *("FGSM",) * 4, *("PGD",) * 4)
AVERAGED = tuple(f"pgd-at-{i}" for i in range(9))  # nine of one kind, to average
# The systems whose accuracy is followed over eps and iterations and that no profile leaves out.
COMPARED = ("plain", "pgd-at", "uniform", "frozen", "dwf")
PGD_AT_STEPS = 10  # the usual number of iterations of PGD adversarial training (Madry et al. 2018; Rice et al. 2020)
BACKBONES = {
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16 with batch norm",
    "densenet121": "DenseNet-121",
    "wrn28-10": "WideResNet-28-10",
}
STRONGEST = "wrn28-10"  # the backbone the field's own leader boards are built on; trained by PGD-AT too
CIFAR10_VALUES = 3 * 32 * 32  # numbers in one image
# Where every image is of one size. Any other data set's images are measured when they are attacked.
IMAGE_VALUES = {"digits": 8 * 8, "cifar10": CIFAR10_VALUES, "svhn": CIFAR10_VALUES}
UNSAFE = "advmoe-unsafe"  # the negative control: known by name, never trained for a result


@dataclass(frozen=True)
class Network:
    """What a system is built of; sizes are multiples of the profile's."""

    kind: str = "single"  # "single", "mixture", "soe" or "advmoe"; "own" is built by a function of the extension
    member: str = "resnet18"  # a backbone, or "small", the shape of SoE's sub-models and ADVMoE's router; of "own", its
    # name among the extension's NETWORKS
    width: float = 1
    experts: int = 1
    gate: str = ""  # of a mixture: "learned", "uniform" or "resnet18", a full network of its own as in MoRE
    gate_width: float = 1
    mixing: str = ""  # of a mixture; the profile's if empty
    top1: bool = False  # of a mixture: the expert with the largest weight answers alone


@dataclass(frozen=True)
class Recipe:
    """How a system comes to be. Without ``turns`` nothing is learned."""

    system: str
    story: str  # one line for tables and logs
    family: str  # where tables list it: "single", "expert", "member", "mixture", "defence" or "ablation"
    network: Network = Network()
    starts_from: tuple[str, ...] = ()  # systems whose weights its experts begin with
    weights_of: str = ""  # the system all of whose weights it has
    turns: tuple[Turn, ...] = ()
    training: TrainConfig | None = None
    select: str = "pgd"  # validation accuracy that picks the checkpoint
    own: bool = False  # in the setting of its own paper rather than in DWF's
    luck: str = ""  # the system whose initial weights, batches and strikes it shares, so that only the recipes differ
    code: str = ""  # which version of the extension it stems from; filled in, no need to give it

    @property
    def kept(self) -> bool:
        """Whether it has weights of its own, kept under ``train:SYSTEM``: learned, or as the user's network came."""
        return bool(self.turns) or self.network.kind == "own"

    @property
    def chooses(self) -> bool:
        """Whether an expert is picked by an argmax that no gradient passes, so that it needs further attacks."""
        return self.network.kind in ("soe", "advmoe") or self.network.top1


def recipes(profile: Profile) -> dict[str, Recipe]:
    """The systems that ``profile`` compares and those they are built from, at its scale, by name.

    Raises:
        ProfileError: a pattern of ``study.systems`` fits no system, one that every notebook shows is left out, or the
            extension's cannot be used.
    """
    known = _every(profile)
    chosen: dict[str, None] = {}

    def choose(name: str) -> None:
        recipe = known[name]
        for needed in (*recipe.starts_from, *([recipe.weights_of] if recipe.weights_of else [])):
            choose(needed)
        chosen[name] = None

    own = [recipe.system for recipe in _own(profile)]
    for pattern in (*profile.study.systems, *own):
        found = fnmatch.filter(known, pattern)
        if not found:
            raise ProfileError(f"study.systems: no system {pattern!r}{hint(pattern, list(known))}")
        for name in found:
            choose(name)
    if absent := [name for name in COMPARED if name not in chosen]:
        raise ProfileError(f"study.systems: {', '.join(absent)} must be among them; every notebook shows them")
    return {name: recipe for name, recipe in known.items() if name in chosen}


def _every(profile: Profile) -> dict[str, Recipe]:
    listed = [*_singles(profile), *_experts(profile), *_mixtures(profile), *_defences(profile), *_ablations(profile)]
    known = {recipe.system: recipe for recipe in listed}
    for recipe in _own(profile):
        if recipe.system in known:
            raise ProfileError(f"{recipe.system}: the extension may not take the name of another system")
        known[recipe.system] = recipe
    return known


def _own(profile: Profile) -> list[Recipe]:
    """The systems of the user's extension."""
    extension = load_extension(profile.study.extension)
    found = extension.call(extension.systems, profile)
    families = ("single", "mixture", "defence", "member")
    for recipe in found:
        if not isinstance(recipe, Recipe) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", recipe.system):
            raise ProfileError(
                f"{extension.name}: systems must list recipes named in lower case, digits and hyphens, got {recipe!r}"
            )
        if recipe.family not in families:
            raise ProfileError(f"{recipe.system}: family {recipe.family!r} is not one of {', '.join(families)}")
        if recipe.turns and recipe.training is None:
            raise ProfileError(f"{recipe.system}: a recipe with turns needs training, such as profile.phase1")
        if recipe.network.kind == "own" and recipe.network.member not in extension.networks:
            raise ProfileError(f"{recipe.system}: no network {recipe.network.member!r} in {extension.name}'s NETWORKS")
    return [replace(recipe, code=extension.digest) for recipe in found]


@dataclass(frozen=True)
class _Diets:
    """The threats of a profile."""

    fgsm: RandomFGSM
    pgd: RandomPGD
    at: RandomPGD  # fixed PGD-10, as in PGD adversarial training
    phase2: OneOf


def _diets(profile: Profile) -> _Diets:
    threat = profile.threat
    fgsm = RandomFGSM(tuple(float(eps) for eps in threat.fgsm_eps))
    pgd = RandomPGD(float(threat.pgd_eps), float(threat.pgd_step), threat.pgd_steps, threat.random_start)
    return _Diets(fgsm, pgd, replace(pgd, steps=(PGD_AT_STEPS,)), OneOf((Clean(), fgsm, pgd)))


def _both(profile: Profile) -> TrainConfig:
    # As many epochs as an expert sees in both phases, so that DWF is not compared with a network trained for less.
    return replace(profile.phase1, epochs=profile.phase1.epochs + profile.phase2.epochs)


def _singles(profile: Profile) -> list[Recipe]:
    """Single networks: undefended, and adversarially trained in the usual ways."""
    diets, both = _diets(profile), _both(profile)
    plain = Recipe("plain", "ResNet-18, no defence", "single", turns=(Turn(Clean()),), training=both, select="clean")
    at = Recipe(
        "pgd-at",
        f"ResNet-18, PGD-{PGD_AT_STEPS} adversarial training",
        "single",
        turns=(Turn(diets.at),),
        training=both,
    )
    kl = replace(diets.at, random_start=False, noise=0.001, aim="divergence")
    # Wong et al. 2020: one step of 1.25 eps from a random start
    eps = diets.pgd.eps
    fast = RandomPGD(eps, 1.25 * eps, (1,))
    listed = [plain]
    for name, title in BACKBONES.items():
        network = Network(member=name)
        listed.append(replace(plain, system=f"plain-{name}", story=f"{title}, no defence", network=network))
    return [
        *listed,
        at,
        replace(at, system="trades", story="ResNet-18, TRADES (beta 6)", turns=(Turn(kl, Trades()),)),
        replace(at, system="fgsm-at", story="ResNet-18, FGSM at fixed eps", turns=(Turn(RandomFGSM((eps,))),)),
        replace(at, system="fgsm-rs", story="ResNet-18, FGSM with a random start", turns=(Turn(fast),)),
        replace(
            at,
            system=f"pgd-at-{STRONGEST}",
            story=f"{BACKBONES[STRONGEST]}, PGD-{PGD_AT_STEPS} adversarial training",
            network=Network(member=STRONGEST),
        ),
        # Parameters grow with the square of the width: three times as wide is nine times as large.
        replace(at, system="pgd-at-wide", story="PGD-AT ResNet-18 as large as DWF", network=Network(width=3)),
        *(
            # For as long as an expert in phase 1, so that the nine cost less than DWF, not more.
            replace(at, system=name, story="PGD-AT ResNet-18, one of nine", family="member", training=profile.phase1)
            for name in AVERAGED
        ),
    ]


def _experts(profile: Profile) -> list[Recipe]:
    """Phase 1: nine experts on three diets."""
    diets = _diets(profile)
    kinds = dict(zip(EXPERTS, EXPERT_KINDS, strict=True))
    return [_expert(name, kind, diets, profile.phase1, "expert") for name, kind in kinds.items()]


def _expert(system: str, kind: str, diets: _Diets, training: TrainConfig, family: str) -> Recipe:
    menu: dict[str, Threat] = {"benign": Clean(), "FGSM": diets.fgsm, "PGD": diets.pgd}
    select = "clean" if kind == "benign" else "pgd"
    story = f"{kind} expert, phase 1"
    return Recipe(system, story, family, turns=(Turn(menu[kind]),), training=training, select=select)


def _mixtures(profile: Profile) -> list[Recipe]:
    """DWF, and the same nine experts used otherwise."""
    diets, nine = _diets(profile), Network("mixture", experts=len(EXPERTS), gate="learned")
    uniform = replace(nine, gate="uniform", mixing="probabilities")
    dwf = Recipe(
        "dwf",
        "DWF: nine experts and gate, trained jointly",
        "mixture",
        nine,
        starts_from=EXPERTS,
        turns=(Turn(diets.phase2),),
        training=profile.phase2,
    )
    return [
        Recipe("uniform", "nine experts, uniform average", "mixture", uniform, starts_from=EXPERTS),
        Recipe("pgd-at-ensemble", "nine PGD-AT ResNet-18, averaged", "mixture", uniform, starts_from=AVERAGED),
        replace(
            dwf,
            system="frozen",
            story="nine frozen experts, trained gate",
            turns=(Turn(diets.phase2, trainable="gate"),),
        ),
        replace(
            dwf,
            system="joint-scratch",
            story="DWF's joint training without pre-training",
            starts_from=(),
            training=_both(profile),
        ),
        dwf,
    ]


def _defences(profile: Profile) -> list[Recipe]:
    """Other mixtures of experts, each in DWF's setting and in its own paper's, as far as that is known."""
    diets, both = _diets(profile), _both(profile)
    eps, nine = diets.pgd.eps, len(EXPERTS)
    # SoE: PGD-10 with steps of a third of eps, on the whole collaboration; sub-models are ResNet-20 there.
    third = replace(diets.at, step_size=eps / 3)
    three = Network("soe", member="small", experts=3)
    soe = Recipe("soe", "SoE of the nine experts", "defence", Network("soe", experts=nine), starts_from=EXPERTS)
    short = _short_attack(profile)
    # MoRE: a full network as gate, mixed logits; each batch is clean, L2 or L-infinity.
    more = Network("mixture", experts=nine, gate="learned", mixing="logits")
    l2, linf = _l2(profile, 80), diets.at
    balls = {
        "L2 60/255": _l2(profile, 60),
        "L2 80/255": l2,
        "L-infinity 6/255": replace(linf, eps=eps * 6 / 8, step_size=linf.step_size * 6 / 8),
        "L-infinity 8/255": linf,
    }
    return [
        replace(soe, turns=(Turn(diets.at, Collaboration()),), training=profile.phase2),
        replace(
            soe,
            system="soe-own",
            story="SoE as published: three small networks",
            network=three,
            starts_from=(),
            turns=(Turn(third, Collaboration()),),
            training=both,
            own=True,
        ),
        Recipe(
            "soe-moe",
            "SoE's soft mixture: three small networks",
            "defence",
            Network("mixture", member="small", experts=3, gate="learned", mixing="logits"),
            turns=(Turn(third, CrossEntropy(clean=True)),),
            training=both,
            own=True,
        ),
        _advmoe("advmoe", "ADVMoE: nine full-width pathways", nine, 1, short, both),
        replace(_advmoe("advmoe-own", "ADVMoE as published: two half-width pathways", 2, 0.5, short, both), own=True),
        Recipe(
            "more",
            "MoRE of the nine experts: last layers and gate trained",
            "defence",
            replace(more, mixing=""),
            starts_from=EXPERTS,
            turns=(Turn(diets.phase2, trainable="heads"),),
            training=profile.phase2,
        ),
        *(
            Recipe(
                f"more-expert-{i}", f"expert of MoRE, {name}", "member", turns=(Turn(diet),), training=profile.phase1
            )
            for i, (name, diet) in enumerate(balls.items(), start=1)
        ),
        Recipe(
            "more-own",
            "MoRE as published: five experts, a ResNet-18 as gate",
            "defence",
            replace(more, experts=5, gate="resnet18"),
            starts_from=("expert-0", *(f"more-expert-{i}" for i in range(1, 5))),
            turns=(Turn(OneOf((Clean(), l2, linf)), trainable="heads"),),
            training=profile.phase2,
            own=True,
        ),
    ]


def _advmoe(
    system: str, story: str, pathways: int, width: float, threat: Threat, training: TrainConfig, *, safe: bool = True
) -> Recipe:
    turns = (Turn(threat, Trades(), "pathways"), Turn(threat, Routing(safe=safe), "router"))
    network = Network("advmoe", width=width, experts=pathways)
    return Recipe(system, story, "defence", network, turns=turns, training=training)


def unsafe_advmoe(profile: Profile) -> tuple[Recipe, Recipe]:
    """One epoch of ADVMoE with the router loss that turns NaN, and with the safe one: controls, no systems."""
    one = replace(profile.phase1, epochs=1)
    unsafe = _advmoe(UNSAFE, "ADVMoE with the unsafe router loss", 2, 0.5, _short_attack(profile), one, safe=False)
    safe = _advmoe("advmoe-safe", "the same with the safe one", 2, 0.5, _short_attack(profile), one)
    return unsafe, replace(safe, luck=UNSAFE)


def _short_attack(profile: Profile) -> RandomPGD:
    # ADVMoE trains against two steps of 5/8 eps from a start just off the image.
    eps = float(profile.threat.pgd_eps)
    return RandomPGD(eps, eps * 5 / 8, (2,), random_start=False, noise=0.001, aim="routed divergence")


def _l2(profile: Profile, radius: int) -> RandomPGD | ResizedL2:
    """MoRE's L2 attack of ``radius``/255 on CIFAR-10, scaled to the profile's budget and to the size of its images."""
    eps = radius / 255 * float(profile.threat.pgd_eps) / (8 / 255)
    cifar10 = RandomPGD(eps, eps / 4, (PGD_AT_STEPS,), norm="l2")
    if profile.data.name not in IMAGE_VALUES:
        return ResizedL2(cifar10, CIFAR10_VALUES)
    resized = Strike(eps, eps / 4, values=CIFAR10_VALUES).resized(IMAGE_VALUES[profile.data.name])
    return replace(cifar10, eps=resized.eps, step_size=resized.step_size)


def _ablations(profile: Profile) -> list[Recipe]:
    """Variants of DWF that differ in one choice from ``ablation-base``, which is DWF with a shorter phase 2.

    All share luck: batches, strikes and random starts of phase 2 are the same, so that only the choice differs.
    """
    diets = _diets(profile)
    short = replace(profile.phase2, epochs=profile.ablation.phase2_epochs)
    # Fixed where the paper draws: the middle of its sets.
    middle = sorted(diets.fgsm.eps)[len(diets.fgsm.eps) // 2]
    half = sorted(diets.pgd.steps)[len(diets.pgd.steps) // 2]
    one_eps, one_length = RandomFGSM((middle,)), replace(diets.pgd, steps=(half,))
    fixed = replace(diets, fgsm=one_eps, pgd=one_length, phase2=OneOf((Clean(), one_eps, one_length)))
    members = [
        replace(_expert(f"{kind.lower()}-{i}", kind, diets, profile.phase1, "member"), story=f"further {kind} expert")
        for kind in ("benign", "FGSM", "PGD")
        for i in range(1, 1 + len(EXPERTS) - EXPERT_KINDS.count(kind))
    ]
    members += [
        replace(
            _expert(f"fixed-{name}", kind, fixed, profile.phase1, "member"),
            story=f"{kind} expert of fixed budget",
            luck=name,
        )
        for name, kind in zip(EXPERTS, EXPERT_KINDS, strict=True)
        if kind != "benign"
    ]
    own = {kind: [n for n, k in zip(EXPERTS, EXPERT_KINDS, strict=True) if k == kind] for kind in set(EXPERT_KINDS)}

    def nine(kind: str) -> tuple[str, ...]:
        return (*own[kind], *(f"{kind.lower()}-{i}" for i in range(1, 1 + len(EXPERTS) - len(own[kind]))))

    base = Recipe(
        "ablation-base",
        "nine experts: 1 benign, 4 FGSM, 4 PGD",
        "ablation",
        Network("mixture", experts=len(EXPERTS), gate="learned"),
        starts_from=EXPERTS,
        turns=(Turn(diets.phase2),),
        training=short,
        luck="ablation",
    )

    def variant(name: str, story: str, chosen: Sequence[str] = EXPERTS, **changes: object) -> Recipe:
        network = replace(base.network, experts=len(chosen), **changes)  # type: ignore[arg-type]
        return replace(base, system=f"ablation-{name}", story=story, starts_from=tuple(chosen), network=network)

    def taught(name: str, story: str, turn: Turn) -> Recipe:
        return replace(base, system=f"ablation-{name}", story=story, turns=(turn,))

    benign, fgsm, pgd = own["benign"], own["FGSM"], own["PGD"]
    other = "logits" if profile.model.mixing == "probabilities" else "probabilities"
    steady = (*benign, *(f"fixed-{name}" for name in (*fgsm, *pgd)))
    picks = variant("top1", "the gate picks one expert at inference", top1=True)
    return [
        *members,
        base,
        variant("1", "one expert: PGD", pgd[:1]),
        variant("3", "three experts: 1 benign, 1 FGSM, 1 PGD", (*benign, *fgsm[:1], *pgd[:1])),
        variant("5", "five experts: 1 benign, 2 FGSM, 2 PGD", (*benign, *fgsm[:2], *pgd[:2])),
        variant("benign", "nine benign experts", nine("benign")),
        variant("fgsm", "nine FGSM experts", nine("FGSM")),
        variant("pgd", "nine PGD experts", nine("PGD")),
        replace(
            variant("fixed", "fixed eps and iterations, both phases", steady),
            turns=(Turn(fixed.phase2),),
        ),
        replace(picks, turns=(), training=None, weights_of="ablation-base"),
        variant("mixing", f"mixed {other}", mixing=other),
        variant("gate", "a gate twice as wide", gate_width=2),
        taught("pgd-batches", "phase 2 on PGD batches only", Turn(diets.pgd)),
        taught("no-pgd-batches", "phase 2 on clean and FGSM batches", Turn(OneOf((Clean(), diets.fgsm)))),
    ]


def recipe_for(system: str, profile: Profile) -> Recipe:
    """Raises MissingError for a system this companion does not know, naming those it does."""
    known = recipes(profile)
    if system not in known and system in _every(profile):
        raise MissingError(f"{system}: left out of profile {profile.name}; name it in study.systems of one of your own")
    if system not in known:
        raise MissingError(f"unknown system {system!r}; known: {', '.join(known)}")
    return known[system]
