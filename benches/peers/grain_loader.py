"""Grain with Pillow: worker processes, which hand batches over in shared memory."""

import common
import grain
import numpy as np
from absl import flags
from PIL import Image


class Files:
    def __init__(self, paths, labels):
        self.paths, self.labels = paths, labels

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.paths[index], self.labels[index]


class Load(grain.transforms.RandomMap):
    def __init__(self, size, f32):
        self.size, self.f32 = size, f32
        self.scale = np.float32(1 / 255) / np.float32(common.STD)
        self.shift = np.float32(common.MEAN) / np.float32(common.STD)

    def random_map(self, sample, rng):
        path, label = sample
        with Image.open(path) as file:
            image = file.convert("RGB")
        w, h, x, y = common.random_resized_crop(rng, *image.size)
        image = image.crop((x, y, x + w, y + h)).resize((self.size, self.size), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.asarray(image)
        if self.f32:
            pixels = pixels * self.scale - self.shift
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), label


def main():
    args = common.arguments()
    flags.FLAGS(["grain_loader"])  # Grain's workers want absl's flags parsed
    data = (
        grain.MapDataset.source(Files(args.paths, args.labels))
        .shuffle(seed=1)
        .repeat()
        .random_map(Load(args.size, args.output == "f32"), seed=1)
    )
    # Processes for what Python does, with one thread and one batch ahead in each.
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=args.batch_size)
    processes = grain.MultiprocessingOptions(num_workers=args.workers, per_worker_buffer_size=2)
    if args.ram_budget:  # its own choice, as its documentation shows it
        picked = grain.experimental.pick_performance_config(
            ds=data.to_iter_dataset(), ram_budget_mb=args.ram_budget, max_workers=args.workers, max_buffer_size=None
        )
        reading, processes = picked.read_options, picked.multiprocessing_options
    batches = data.to_iter_dataset(reading).batch(args.batch_size).mp_prefetch(processes)
    common.consume(args, batches)


if __name__ == "__main__":
    main()
