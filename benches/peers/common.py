"""Shared code of all peers: arguments, the list of files, and the loop that consumes the batches.

A peer yields an endless (or long enough) stream of batches in NCHW order. `consume` warms up for one pass or more,
measures the next ones, and prints one JSON line as soon as the last measured batch has arrived.
"""

import argparse
import json
import math
import os
import time

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", choices=("f32", "u8"), default="f32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--warmup-epochs", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--step-ms", type=float, default=0, help="pause after each batch, as a training step would")
    parser.add_argument("--ram-budget", type=int, help="MiB, for loaders with a memory limit")
    parser.add_argument("--variant", default="")
    parser.add_argument("--check", action="store_true", help="describe the pixels instead of measuring")
    args = parser.parse_args()
    args.paths, args.labels = files(args.data)
    if args.check:
        args.warmup_epochs, args.epochs = 0, 1
    # A batch may cross the end of the warm-up, so there must be one more.
    args.total = len(args.paths) * (args.warmup_epochs + args.epochs) + args.batch_size
    return args


def files(root):
    """Every file of a folder of class folders, and its class."""
    paths, labels = [], []
    for label, name in enumerate(sorted(entry.name for entry in os.scandir(root) if entry.is_dir())):
        for file in sorted(os.listdir(os.path.join(root, name))):
            paths.append(os.path.join(root, name, file))
            labels.append(label)
    return paths, labels


def random_resized_crop(random, width, height):
    """A crop (w, h, x, y) as torchvision chooses it, for peers without a random resized crop."""
    for _ in range(10):
        area = width * height * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return w, h, int(random.random() * (width - w + 1)), int(random.random() * (height - h + 1))
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return w, h, (width - w) // 2, (height - h) // 2


def consume(args, batches):
    """Consumes `(images, labels)` from a stream until enough images are measured."""
    if args.check:
        return check(args, batches)
    warmup, measured = (len(args.paths) * n for n in (args.warmup_epochs, args.epochs))
    seen = images = 0
    began, fewest, checksum = None, None, 0
    for pixels, _ in batches:
        count = int(pixels.shape[0])
        assert tuple(pixels.shape[1:]) == (3, args.size, args.size), pixels.shape
        checksum += float(pixels[-1, -1, -1, -1])  # reads one element, so that the batch must exist
        if args.step_ms:
            time.sleep(args.step_ms / 1000)
        if seen == 0:
            print(json.dumps({"first_batch": True}), flush=True)  # the parent process measures the time
        seen += count
        if began is not None:
            images += count
        elif seen >= warmup:
            began = time.monotonic()
        if images >= measured:
            break
    seconds = time.monotonic() - began
    assert images >= measured, f"only {images} of {measured} images arrived"
    print(json.dumps({"images": images, "seconds": seconds, "dtype": str(pixels.dtype), "checksum": checksum}), flush=True)


def check(args, batches):
    """Describes one pass: number of images, and their mean, deviation and detail on the scale 0 to 255."""
    import numpy as np

    count, sums, squares, detail = 0, np.zeros(3), np.zeros(3), 0.0
    classes = set()
    for pixels, labels in batches:
        pixels, labels = np.asarray(pixels), np.asarray(labels)
        kept = min(len(pixels), len(args.paths) - count)  # a stream's batches may cross the end of a pass
        values, dtype = pixels[:kept].astype(np.float64), str(pixels.dtype)
        if args.output == "f32":
            values = 255 * (values * np.reshape(STD, (1, 3, 1, 1)) + np.reshape(MEAN, (1, 3, 1, 1)))
        count += kept
        classes.update(labels[:kept].ravel().tolist())
        sums += values.sum((0, 2, 3))
        squares += (values**2).sum((0, 2, 3))
        # Mean difference of neighbors, which is larger without antialiasing.
        detail += np.abs(np.diff(values, axis=3)).mean() * kept
        if count >= len(args.paths):
            break
    elements = count * args.size**2
    mean = sums / elements
    std = np.sqrt(squares / elements - mean**2)
    report = {"images": count, "classes": len(classes), "dtype": dtype, "shape": list(pixels.shape[1:])}
    print(json.dumps(report | {"mean": mean.tolist(), "std": std.tolist(), "detail": detail / count}), flush=True)
