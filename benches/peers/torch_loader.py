"""PyTorch's DataLoader with torchvision: the reference recipe, decoded by Pillow, or by torchvision.io (--variant io)."""

import common
import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2


def read_tensor(path):
    return decode_image(path, mode=ImageReadMode.RGB)


def main():
    args = common.arguments()
    torch.set_num_threads(1)  # workers do so by themselves
    io = args.variant == "io"
    steps = [
        v2.RandomResizedCrop(
            args.size, scale=common.SCALE, ratio=common.RATIO, interpolation=InterpolationMode.BILINEAR, antialias=True
        ),
        v2.RandomHorizontalFlip(0.5),
    ]
    if not io:
        steps.append(v2.PILToTensor())
    if args.output == "f32":
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(common.MEAN, common.STD)]
    loader = {"loader": read_tensor} if io else {}
    data = ImageFolder(args.data, transform=v2.Compose(steps), **loader)
    # One permutation after another in a single iterator: workers are never drained, as in a long epoch.
    batches = DataLoader(
        data,
        batch_size=args.batch_size,
        sampler=RandomSampler(data, num_samples=args.total),
        num_workers=args.workers,
        prefetch_factor=2,
        pin_memory=False,  # there is no GPU to pin for
    )
    common.consume(args, batches)


if __name__ == "__main__":
    main()
