"""SPDL: a pipeline of threads over FFmpeg, which crops, scales and mirrors in its filters."""

import random

import common
import numpy as np
import spdl.io
from spdl.pipeline import PipelineBuilder


def main():
    args = common.arguments()
    samples = list(zip(args.paths, args.labels))

    def source():
        while True:
            random.shuffle(samples)
            yield from samples

    def decode(sample):
        path, label = sample
        packets = spdl.io.demux_image(path)
        w, h, x, y = common.random_resized_crop(random, packets.width, packets.height)
        # swscale's bilinear filter widens as an image shrinks, which antialiases.
        filters = [f"crop={w}:{h}:{x}:{y}:exact=1", f"scale={args.size}:{args.size}:flags=bilinear", "format=rgb24"]
        if random.random() < 0.5:
            filters.append("hflip")
        return spdl.io.decode_packets(packets, filter_desc=",".join(filters)), label

    scale = np.float32(1 / 255) / np.float32(common.STD)
    shift = np.float32(common.MEAN) / np.float32(common.STD)

    def finish(batch):
        frames, labels = zip(*batch)
        nhwc = spdl.io.to_numpy(spdl.io.convert_frames(frames))
        nchw = np.empty((len(frames), 3, args.size, args.size), np.float32 if args.output == "f32" else np.uint8)
        for c in range(3):  # SPDL leaves this to the GPU; NumPy does it without the interpreter's lock
            if args.output == "f32":
                np.multiply(nhwc[..., c], scale[c], out=nchw[:, c])
                nchw[:, c] -= shift[c]
            else:
                nchw[:, c] = nhwc[..., c]
        return nchw, labels

    pipeline = (
        PipelineBuilder()
        .add_source(source())
        .pipe(decode, concurrency=args.workers)
        .aggregate(args.batch_size)
        .pipe(finish)
        .add_sink(2)
        .build(num_threads=args.workers)
    )
    with pipeline.auto_stop():
        common.consume(args, pipeline.get_iterator())


if __name__ == "__main__":
    main()
