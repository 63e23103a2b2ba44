"""NVIDIA DALI on the CPU: decoding fused with the random crop, as its documentation recommends."""

import common
import numpy as np
from nvidia.dali import fn, pipeline_def, types


@pipeline_def
def recipe(args):
    # Without a shuffle buffer of encoded files: the whole list is shuffled before each pass.
    encoded, labels = fn.readers.file(file_root=args.data, shuffle_after_epoch=True, name="reader")
    images = fn.decoders.image_random_crop(
        encoded, device="cpu", output_type=types.RGB, random_area=common.SCALE, random_aspect_ratio=common.RATIO
    )
    images = fn.resize(images, size=[args.size, args.size], interp_type=types.INTERP_LINEAR, antialias=True)
    f32 = args.output == "f32"
    images = fn.crop_mirror_normalize(
        images,
        mirror=fn.random.coin_flip(probability=0.5),
        output_layout="CHW",
        dtype=types.FLOAT if f32 else types.UINT8,
        mean=[255 * v for v in common.MEAN] if f32 else 0.0,
        std=[255 * v for v in common.STD] if f32 else 1.0,
    )
    return images, labels


def main():
    args = common.arguments()
    pipeline = recipe(
        args, batch_size=args.batch_size, num_threads=args.workers, device_id=None, prefetch_queue_depth=2, seed=1
    )
    pipeline.build()

    def batches():
        while True:  # passes follow each other without a gap; a batch may cross the end of one
            images, labels = pipeline.run()
            yield np.asarray(images.as_tensor()), np.asarray(labels.as_tensor())

    common.consume(args, batches())


if __name__ == "__main__":
    main()
