"""Which kind of work each operator of a profile belongs to: exactly one."""

from collections import Counter

from ..ranges import OWN, PART, SCHEDULER, UNET

CLASSES = {  # in the order in which they are shown
    "convolution": "Convolutions", "linear": "Linear layers", "attention": "Attention",
    "norm": "Norms and activations", "other": "Other operations", "between": "Between operations",
    "own": "The method's own work", "scheduler": "Scheduler", "text": "Text encoder", "decoder": "Decoder",
}
OPERATORS = {
    "convolution": "conv1d conv2d conv3d conv_transpose2d convolution _convolution",
    "linear": "linear addmm mm",
    "attention": "scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
                 "_scaled_dot_product_flash_attention_for_cpu matmul bmm baddbmm softmax _softmax",
    "norm": "group_norm layer_norm batch_norm rms_norm instance_norm native_group_norm native_layer_norm silu silu_ gelu "
            "gelu_ relu relu_ sigmoid tanh mish hardswish",
}
CLASS_OF = {f"aten::{name}": kind for kind, names in OPERATORS.items() for name in names.split()}


def place(name, above):
    """(class, part) of an event called `name` inside an event of (class, part) `above`. The outermost name decides, but a
    range of a method or of the scheduler decides over all: a softmax is attention, and matching when it is part of that. The
    part of a method's own work is the word for it."""
    kind, part = above
    if kind in ("own", "scheduler"):
        return above
    if name.startswith(OWN):
        return "own", name.removeprefix(OWN)
    if name == SCHEDULER:
        return "scheduler", part
    if name.startswith(PART):
        return kind, name.removeprefix(PART)
    if kind in ("between", "other") and (name in CLASS_OF or name.startswith("aten::")):
        return CLASS_OF.get(name, "other"), part
    return above


def spent(events, accelerated):
    """{(class, part): s} of one sampling step from the events of its profile (torch's FunctionEvents), see `place`; part is
    the innermost of ranges.PARTS or "". From the U-Net's first operation on; the values add up to the whole stretch.

    accelerated: time is that of the device, and what it waited for is "between" operations.
    """
    ours = [event for event in events if event.device_type.name == "CPU"]
    start = min((event.time_range.start for event in ours if event.name == UNET), default=0)
    ours = [event for event in ours if event.time_range.start >= start]
    found, places = Counter(), {}
    for event in sorted(ours, key=lambda event: (event.time_range.start, -event.time_range.end)):
        above = places.get(id(event.cpu_parent), ("between", ""))
        places[id(event)] = place(event.name, above)
        found[places[id(event)]] += (event.self_device_time_total if accelerated else event.self_cpu_time_total) / 1e6
    found["between", ""] += max(0.0, stretch(events if accelerated else ours, accelerated) - sum(found.values()))
    return dict(found)


def stretch(events, accelerated):
    """Seconds from the start of the first of the events that count to the end of the last."""
    spans = [event.time_range for event in events
             if not accelerated or event.device_type.name != "CPU" and not event.is_user_annotation]
    return (max(span.end for span in spans) - min(span.start for span in spans)) / 1e6 if spans else 0.0
