"""Feature-matching warm-up: from the teacher's noise, the student draws the teacher's picture in one step.

SDXS, arXiv 2403.16627, section on one-step training: 1 - SSIM between features of a frozen encoder instead of a squared
error, whose best answer is a blur. The encoder is the way down of the teacher's own U-Net, which reads latents; both
pictures get the same noise of one small timestep first, because that is what it was trained on. A pseudo-Huber distance
of the latents (Song and Dhariwal, arXiv 2310.14189, equation 7) keeps colours in place.

Pairs are dear and soon learnt by heart: 4 000 of them, seen 2.5 times each, were drawn with a mean square error of 0.25, others with
0.31. Real scenes are endless. Half of what the student sees are such, under so much noise that it has to draw most of them itself.

Features are compared in windows, a quarter of each picture: the teacher learnt shapes from windows too. In 5 minutes beside whole
pictures, windows anywhere had 1.9 times as many steps and, on 64 held-out pairs, mean square error 0.275 beside 0.282. Backgrounds
are soon right, so the windows lie where they are not.
"""

import torch
import torch.nn.functional as F
from PIL import Image

from .. import evaluate, measures
from ..loop import DEVICE, compiled, quick, start_seed, train
from ..muon import optimizers
from ..teacher import WINDOW as SIDE
from . import chain, distil, network
from .pairs import Pairs

WINDOW = 7  # places per side of the windows in which SSIM compares
HUBER = 0.1  # where the pseudo-Huber distance turns from squares to lengths
WEIGHT = 0.1  # of that distance
REPORTED = 80_000_021  # seeds of the noise of what is reported begin here
SEEN = 500, network.LAST  # range of the timesteps of the noise that real scenes are seen under
CLOSE = (0.02, 0.2)  # range of the small timestep, as shares of all


def similarity(a, b, window=WINDOW):
    """SSIM (Wang et al. 2004, equation 13) of feature maps (B, C, h, w), mean over places and channels -> (B,), in single
    precision. Even windows of at most `window`; a channel's dynamic range is four of the deviations that it has in b."""
    size = min(window, *a.shape[2:])
    centre = b.float().mean((0, 2, 3), keepdim=True)  # without it, squares far from zero cancel to noise
    a, b = a.float() - centre, b.float() - centre
    reach = 4 * b.std((0, 2, 3), keepdim=True) + 1e-6
    c1, c2 = (0.01 * reach) ** 2, (0.03 * reach) ** 2
    mean = lambda x: F.avg_pool2d(x, size, stride=1)  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb, cov = (mean(a * a) - ma * ma).clamp(min=0), (mean(b * b) - mb * mb).clamp(min=0), mean(a * b) - ma * mb
    ma, mb = ma + centre, mb + centre
    found = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    return found.mean((1, 2, 3))


def pseudo_huber(a, b, c=HUBER):
    """sqrt(d^2 + c^2) - c, mean over all elements."""
    return ((a - b).pow(2) + c * c).sqrt().mean() - c


def features(unet, clean, noise, t, text, alphas, downwards=network.downwards):
    """What the U-Net's way down makes of noised pictures: the last layer of each stage before it is halved."""
    layers = unet.config.layers_per_block
    outputs = downwards(unet, network.noised(clean, noise, alphas[t]), t, text)[1][1:]
    return [outputs[i] for i in range(layers - 1, len(outputs), layers + 1)]


def matching(unet, ours, wanted, text, alphas, downwards=network.downwards):
    """Sum over the stages of 1 - SSIM of features of two pictures, latents (B, 4, h, w): 0 for equal ones. downwards:
    network.downwards, or that compiled."""
    low, high = (round(share * len(alphas)) for share in CLOSE)
    t = torch.randint(low, high, (1,), device=ours.device).expand(len(ours))
    noise = torch.randn_like(wanted)
    with torch.no_grad():
        theirs = features(unet, wanted, noise, t, text, alphas, downwards)
    found = features(unet, ours, noise, t, text, alphas, downwards)
    return sum(1 - similarity(a, b).mean() for a, b in zip(found, theirs))


def windows(drawn, wanted, side=SIDE):
    """One window of `side` latent cells of each pair of latents (B, C, h, w), the same in both, at random: the likelier, the further
    the two are apart there (mean squared distance, squared), which is where the objects are."""
    side = min(side, *drawn.shape[2:])
    apart = F.avg_pool2d((drawn - wanted).detach().float().square().mean(1), side, stride=1)
    places = torch.multinomial((apart.flatten(1) + 1e-6) ** 2, 1)[:, 0]
    corners = [divmod(place, apart.shape[2]) for place in places.tolist()]
    return [torch.stack([each[:, y:y + side, x:x + side] for each, (y, x) in zip(pictures, corners)]) for pictures in (drawn, wanted)]


def paired(unet, drawn, latents, text, alphas, downwards=network.downwards):
    """(loss, its parts) of what was drawn from paired noise: matching in a window, and WEIGHT times the pseudo-Huber distance."""
    match, huber = matching(unet, *windows(drawn, latents), text, alphas, downwards), pseudo_huber(drawn, latents)
    return match + WEIGHT * huber, {"match": match, "huber": huber}


def starts(noise, scenes, alphas):
    """(start, t) of the student's one step: the pairs' noise at the last timestep, and real scenes (B, 4, h, w), noised."""
    t = torch.randint(*SEEN, (len(scenes),), device=scenes.device)
    mixed = network.noised(scenes, torch.randn_like(scenes), alphas[t])
    return torch.cat([(1 - alphas[network.LAST]).sqrt() * noise, mixed]), torch.cat([t.new_full((len(noise),), network.LAST), t])


def loss_of(guide, alphas, downwards=network.downwards, more=None):
    """loss(student, (noise, tokens, latents, tokens of scenes, scenes)) for loop.train. downwards: see matching; more: (drawn
    latents, wanted ones, their captions' tokens, how many of them are of pairs) -> a loss to add, and its parts."""
    def loss(student, batch):
        noise, tokens, latents, others, scenes = batch
        captions = torch.cat([tokens, others])
        text = chain.embedded(guide, captions)
        drawn = network.estimated(student, *starts(noise, scenes, alphas), text, alphas)
        wanted = torch.cat([latents, scenes])
        value, told = paired(guide.unet, drawn, wanted, text, alphas, downwards)
        added, also = more(drawn, wanted, captions, len(noise)) if more else (0, {})
        return value + added, {**told, **also, "mean": drawn.mean(), "std": drawn.std()}

    return loss


def batches(pairs, scenes, size):
    """Endless batches of `size`, half of them of pairs; scenes: endless (latents, tokens)."""
    for latents, tokens in scenes:
        yield *pairs.draw(size - len(latents)), tokens, latents


@torch.no_grad()
def painted(vae, latents):
    """Latents (B, 4, h, w) as pictures (PIL), by the autoencoder `vae`."""
    pictures = (vae.decode(latents).sample.clamp(-1, 1) * 127.5 + 127.5).round().byte()
    return [Image.fromarray(each.permute(1, 2, 0).cpu().numpy()) for each in pictures]


def recalled(guide, count=24, prompts=24, seeds=4):
    """report(student) for loop.train, of what is drawn in one step for `count` prompts of one object and as many of two that neither
    pairs nor captions hold: recall of both, the backgrounds', and the diversity, LPIPS, of `seeds` pictures of some `prompts`, which falls
    where prompts get one picture each. The judge that reads them is in no loss."""
    asked = [evaluate.prompts(count, 70_000_027, number) for number in (1, 2)]
    some = [scene for scenes in asked for scene in scenes[:prompts // 2]]
    vae, alphas = chain.own_autoencoder(), chain.alphas()

    @torch.no_grad()
    def drawn(student, scenes):
        noise = torch.cat([evaluate.noise(REPORTED + i) for i in range(len(scenes))]).to(DEVICE)
        text = chain.embedded(guide, chain.tokens_of(guide, [scene.caption for scene in scenes]))
        return torch.cat([network.one_step(student, *each, alphas) for each in zip(noise.split(8), text.split(8))])

    def report(student):
        told = [measures.recall(scenes, [picture for latents in drawn(student, scenes).split(8) for picture in painted(vae, latents)])[0]
                for scenes in asked]
        many = [picture for latents in drawn(student, [scene for scene in some for _ in range(seeds)]).split(8) for picture in painted(vae, latents)]
        return {"one": told[0]["objects"], "two": told[1]["objects"], "background": (told[0]["background"] + told[1]["background"]) / 2,
                "diversity": round(measures.diversity([many[i:i + seeds] for i in range(0, len(many), seeds)]), 4)}

    return report


def fit(minutes, size, lr, decay=0.25, fresh=1.0, room=12_000):
    """Goes on from the checkpoint or, without one of the distilled student as it is now, from that. fresh: new scenes per
    batch; decay: see loop.train."""
    parent, start = chain.parent("warmup"), chain.checkpoint("warmup")
    seed = start_seed(chain.name("warmup"), 12, start)
    guide = chain.committed_teacher(minutes)
    student = quick(chain.student(guide, "warmup") if start else network.begin(chain.student(guide, "distil")), minutes)
    loss = loss_of(guide, chain.alphas(), compiled(network.downwards, minutes))
    scenes = distil.scenes(guide, chain.small_autoencoder().encoder, size // 2, fresh, room, seed)
    return train(chain.name("warmup"), student, batches(Pairs(guide), scenes, size), loss, minutes, lr, optimizers=optimizers(student, lr), decay=decay,
                 report=recalled(guide), report_every=300, start=start, recipe={"batch": size, "parent": parent})
