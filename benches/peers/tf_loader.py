"""tf.data with decode_and_crop_jpeg, antialiased as the others are, or as tf.image does by default (--variant plain)."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import common
import tensorflow as tf


def main():
    args = common.arguments()
    size, f32 = args.size, args.output == "f32"
    mean, std = (tf.constant([255 * v for v in values]) for values in (common.MEAN, common.STD))

    def load(path, label):
        encoded = tf.io.read_file(path)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded),
            tf.zeros([1, 0, 4]),
            min_object_covered=0,
            area_range=common.SCALE,
            aspect_ratio_range=common.RATIO,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, [size, size], antialias=args.variant != "plain")
        image = tf.image.random_flip_left_right(image)
        image = (image - mean) / std if f32 else tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return tf.transpose(image, [2, 0, 1]), label

    options = tf.data.Options()
    options.deterministic = False  # samples are shuffled: nobody needs them in order
    options.threading.private_threadpool_size = args.workers
    options.threading.max_intra_op_parallelism = 1
    if args.ram_budget:
        options.autotune.ram_budget = args.ram_budget << 20
        options.autotune.initial_parallelism = 1  # what its documentation says to those who are short of memory
    data = (
        tf.data.Dataset.from_tensor_slices((args.paths, args.labels))
        .shuffle(len(args.paths))
        .repeat()
        # Measured here: AUTOTUNE is as fast as a fixed number, and is what the budget is for.
        .map(load, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(args.batch_size)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )
    common.consume(args, data.as_numpy_iterator())  # the arrays are views, not copies


if __name__ == "__main__":
    main()
