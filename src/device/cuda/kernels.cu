// Owns what a GPU does to a batch: decoded samples, u8 NHWC, become its elements in NHWC or NCHW, each cropped and flipped
// as its place says; a simulated training step; and the copy that finishing is measured against.
//
// It must never do arithmetic on floats. An element is one of 256 values a channel, so each byte is looked up in a table of
// results that the host computed. CPU and GPU then agree bit for bit by construction, and a 16-bit float is just 16 bits.
// It must never read a byte outside the batch's pixels, nor write one outside its elements.
//
// Built by `scripts/kernels` into kernels.ptx, which is what ships: NVRTC, no headers. `tests/standin/host_kernels.cpp`
// builds the same text for the CPU, where the tests run it.
//
// Launch: grid.y samples, blocks of at most BLOCK threads, and grid.x blocks that share the quads (4 neighbouring pixels)
// of a sample. A batch of more than 65535 samples takes several launches, each but the last of a multiple of 256 samples,
// so that its pointers stay aligned. `pixels`, `table` and `out` are aligned to 16 bytes or more.
//
// What bounds it, by calculation: memory. A quad of b32 moves 60 bytes, b16 36, b8 24; at 13 bytes a cycle, an H100's share
// of its bandwidth per SM, a warp's quads take 148, 89 and 59 cycles there. The table is the dearest of the rest: 32 random
// look-ups in 32 banks take about 3.5 turns, 42 cycles for the 12 look-ups of a quad, and with the loads and stores the
// shared-memory pipe is busy 63 (b32) and 57 (b16) cycles: hidden, if enough warps are there to overlap. Neighbours in a
// photograph are alike, which takes fewer turns. Reads in flight: 12 bytes a thread, 24 KiB an SM when it is full.

// 8 blocks fill an SM of 2048 threads, and are small enough to even out at the end of a launch.
enum : unsigned { BLOCK = 256 };

// What the host build replaces: a clock, and waiting for it.
#ifndef FEEDSTOCK_WAIT
__device__ __forceinline__ unsigned long long global_nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Bounded even where the timer stands still: no GPU makes more than 4 cycles a nanosecond.
__device__ __forceinline__ void wait(unsigned long long nanoseconds) {
    const unsigned long long begin = global_nanoseconds();
    const long long cycle = clock64();
    while (global_nanoseconds() - begin < nanoseconds &&
           static_cast<unsigned long long>(clock64() - cycle) < 4 * nanoseconds) {
    }
}
#define FEEDSTOCK_WAIT(nanoseconds) wait(nanoseconds)
#endif

// Where a finished sample lies in its stored pixels. As the host writes it: 8 bytes.
struct Place {
    unsigned short top, left;
    unsigned flip;
};
static_assert(sizeof(Place) == 8, "as the host writes it");

// What a block knows about its sample, blockIdx.y.
struct Sample {
    const unsigned char* pixels;
    unsigned height, width, stored_bytes, stored_width;
    unsigned top, left;
    bool flip;

    __device__ Sample(const unsigned char* batch, const Place* places, unsigned height, unsigned width,
                      unsigned stored_height, unsigned stored_width)
        : height(height), width(width), stored_bytes(3 * stored_height * stored_width), stored_width(stored_width),
          top(0), left(0), flip(false) {
        pixels = batch + static_cast<unsigned long long>(blockIdx.y) * stored_bytes;
        if (places != nullptr) {
            const Place place = places[blockIdx.y];
            top = place.top;
            left = place.left;
            flip = place.flip != 0;
        }
    }

    __device__ __forceinline__ unsigned plane() const { return height * width; }

    // Stored as it is wanted.
    __device__ __forceinline__ bool as_stored() const {
        return stored_width == width && stored_bytes == 3 * plane() && !flip;
    }

    // The offset of the stored pixel that becomes (y, x).
    __device__ __forceinline__ unsigned source(unsigned y, unsigned x) const {
        return 3 * ((top + y) * stored_width + left + (flip ? width - 1 - x : x));
    }
};

// The results of an element type, in shared memory: 256 a channel. Bytes stay as they are and need none.
template <class Element>
struct Table {
    enum : unsigned { VECTORS = 3 * 256 * sizeof(Element) / sizeof(uint4) };
    uint4* shared;

    // Every thread of the block has to come by, once, before the first look-up.
    __device__ __forceinline__ void fill(const void* results) const {
        const uint4* from = static_cast<const uint4*>(results);
        for (unsigned at = threadIdx.x; at < VECTORS; at += blockDim.x) {
            shared[at] = __ldg(from + at);
        }
        __syncthreads();
    }

    // `row` is 256 * channel.
    __device__ __forceinline__ Element at(unsigned row, unsigned byte) const {
        return reinterpret_cast<const Element*>(shared)[row + byte];
    }
};

template <>
struct Table<unsigned char> {
    enum : unsigned { VECTORS = 1 };
    uint4* shared;

    __device__ __forceinline__ void fill(const void*) const {}
    __device__ __forceinline__ unsigned char at(unsigned, unsigned byte) const {
        return static_cast<unsigned char>(byte);
    }
};

// Stores go past the caches' older lines (`__stcs`): a batch is used a step later, when the training step that runs now has
// long turned the L2 over, and should not take room from it.

// Looks four bytes up, the lowest first, and stores them as one vector. `to` is aligned to it.
__device__ __forceinline__ void put(unsigned char* to, Table<unsigned char>, unsigned, unsigned, unsigned, unsigned,
                                    unsigned bytes) {
    __stcs(reinterpret_cast<unsigned*>(to), bytes);
}

__device__ __forceinline__ void put(unsigned short* to, Table<unsigned short> table, unsigned row0, unsigned row1,
                                    unsigned row2, unsigned row3, unsigned bytes) {
    const unsigned a = table.at(row0, bytes & 255), b = table.at(row1, bytes >> 8 & 255);
    const unsigned c = table.at(row2, bytes >> 16 & 255), d = table.at(row3, bytes >> 24);
    __stcs(reinterpret_cast<uint2*>(to), make_uint2(a | b << 16, c | d << 16));
}

__device__ __forceinline__ void put(unsigned* to, Table<unsigned> table, unsigned row0, unsigned row1, unsigned row2,
                                    unsigned row3, unsigned bytes) {
    __stcs(reinterpret_cast<uint4*>(to), make_uint4(table.at(row0, bytes & 255), table.at(row1, bytes >> 8 & 255),
                                                    table.at(row2, bytes >> 16 & 255), table.at(row3, bytes >> 24)));
}

// 12 bytes from any address on: the words they lie in, and by how many bits they are off.
struct Quad {
    unsigned words[4];
    unsigned skew;
};

__device__ __forceinline__ Quad aligned_quad(const unsigned* from) {
    return {{__ldg(from), __ldg(from + 1), __ldg(from + 2), 0}, 0};
}

// The words around 12 bytes begin no earlier than the batch. The last of them may end after the sample: bytes, then.
__device__ __forceinline__ Quad any_quad(const Sample& sample, unsigned at) {
    const unsigned char* from = sample.pixels + at;
    const unsigned off = static_cast<unsigned>(reinterpret_cast<unsigned long long>(from) & 3);
    Quad quad = aligned_quad(reinterpret_cast<const unsigned*>(from - off));
    quad.skew = 8 * off;
    if (off != 0) {
        const unsigned last = at + 12 - off;
        if (last + 4 <= sample.stored_bytes) {
            quad.words[3] = __ldg(reinterpret_cast<const unsigned*>(sample.pixels + last));
        } else {
            for (unsigned byte = 0; byte < 3; ++byte) {
                if (byte < off) {
                    quad.words[3] |= static_cast<unsigned>(__ldg(sample.pixels + last + byte)) << (8 * byte);
                }
            }
        }
    }
    return quad;
}

// The quads of a sample, by planes. `load` gives the pixels of one. The first is under way while the table is filled, and
// the next while one is looked up.
template <bool AS_STORED, class Element, class Load>
__device__ __forceinline__ void by_planes(Element* out, const Sample& sample, Table<Element> table, const void* results,
                                          Load load) {
    const unsigned plane = sample.plane(), quads = plane / 4, stride = gridDim.x * blockDim.x;
    // The order of a channel's four bytes.
    const unsigned order = sample.flip ? 0x0123 : 0x3210;
    unsigned quad = blockIdx.x * blockDim.x + threadIdx.x;
    Quad next = {};
    if (quad < quads) {
        next = load(quad);
    }
    table.fill(results);
    while (quad < quads) {
        const Quad now = next;
        Element* to = out + 4 * quad;
        quad += stride;
        if (quad < quads) {
            next = load(quad);
        }
        // R0 G0 B0 R1, G1 B1 R2 G2, B2 R3 G3 B3, the lowest byte first.
        unsigned a = now.words[0], b = now.words[1], c = now.words[2];
        if (!AS_STORED) {
            a = __funnelshift_r(a, b, now.skew);
            b = __funnelshift_r(b, c, now.skew);
            c = __funnelshift_r(c, now.words[3], now.skew);
        }
        unsigned red = __byte_perm(__byte_perm(a, b, 0x0630), c, 0x5210);
        unsigned green = __byte_perm(__byte_perm(a, b, 0x0741), c, 0x6210);
        unsigned blue = __byte_perm(__byte_perm(a, b, 0x0052), c, 0x7410);
        if (!AS_STORED) {
            red = __byte_perm(red, 0, order);
            green = __byte_perm(green, 0, order);
            blue = __byte_perm(blue, 0, order);
        }
        put(to, table, 0, 0, 0, 0, red);
        put(to + plane, table, 256, 256, 256, 256, green);
        put(to + 2 * plane, table, 512, 512, 512, 512, blue);
    }
}

// A pixel a thread, for sizes that leave the planes or rows unaligned.
template <class Element>
__device__ __forceinline__ void by_pixels_nchw(Element* out, const Sample& sample, Table<Element> table) {
    const unsigned plane = sample.plane(), stride = gridDim.x * blockDim.x;
    for (unsigned pixel = blockIdx.x * blockDim.x + threadIdx.x; pixel < plane; pixel += stride) {
        const unsigned y = pixel / sample.width, x = pixel - y * sample.width;
        const unsigned char* from = sample.pixels + sample.source(y, x);
        Element* to = out + pixel;
        __stcs(to, table.at(0, __ldg(from)));
        __stcs(to + plane, table.at(256, __ldg(from + 1)));
        __stcs(to + 2 * plane, table.at(512, __ldg(from + 2)));
    }
}

template <class Element>
__device__ __forceinline__ void finish_nchw(Element* out, const Sample& sample, Table<Element> table,
                                            const void* results) {
    out += static_cast<unsigned long long>(blockIdx.y) * (3 * sample.plane());
    if (sample.as_stored() && sample.plane() % 4 == 0) {
        const unsigned* words = reinterpret_cast<const unsigned*>(sample.pixels);
        by_planes<true>(out, sample, table, results, [=](unsigned quad) { return aligned_quad(words + 3 * quad); });
    } else if (sample.width % 4 == 0) {
        by_planes<false>(out, sample, table, results, [&](unsigned quad) {
            const unsigned in_row = sample.width / 4, y = quad / in_row, x = 4 * (quad - y * in_row);
            return any_quad(sample, sample.source(y, sample.flip ? x + 3 : x));
        });
    } else {
        table.fill(results);
        by_pixels_nchw(out, sample, table);
    }
}

// A sample's elements as they lie, four a thread; three fours at once, a block apart, so that a thread has as much under
// way as by planes. A block's stretch is a multiple of 3 fours long, so each of a thread's three keeps its channels.
template <class Element>
__device__ __forceinline__ void by_fours(Element* out, const Sample& sample, Table<Element> table, const void* results) {
    const unsigned* words = reinterpret_cast<const unsigned*>(sample.pixels);
    const unsigned fours = 3 * sample.plane() / 4, stride = 3 * gridDim.x * blockDim.x;
    unsigned first = 3 * blockIdx.x * blockDim.x + threadIdx.x;
    unsigned next[3] = {}, rows[3];
    for (unsigned turn = 0; turn < 3; ++turn) {
        const unsigned four = first + turn * blockDim.x;
        // Element 4 * four is of channel 4 * four % 3.
        rows[turn] = 256 * (four % 3);
        if (four < fours) {
            next[turn] = __ldg(words + four);
        }
    }
    table.fill(results);
    while (first < fours) {
        const unsigned now[3] = {next[0], next[1], next[2]}, from = first;
        first += stride;
        for (unsigned turn = 0; turn < 3; ++turn) {
            const unsigned four = first + turn * blockDim.x;
            if (four < fours) {
                next[turn] = __ldg(words + four);
            }
        }
        for (unsigned turn = 0; turn < 3; ++turn) {
            const unsigned four = from + turn * blockDim.x;
            if (four < fours) {
                const unsigned row0 = rows[turn];
                const unsigned row1 = row0 == 512 ? 0 : row0 + 256, row2 = row1 == 512 ? 0 : row1 + 256;
                put(out + 4 * four, table, row0, row1, row2, row0, now[turn]);
            }
        }
    }
}

// Bytes as they lie are a copy.
__device__ __forceinline__ void by_fours(unsigned char* out, const Sample& sample, Table<unsigned char>, const void*) {
    const unsigned bytes = 3 * sample.plane(), stride = gridDim.x * blockDim.x;
    const unsigned first = blockIdx.x * blockDim.x + threadIdx.x;
    if (bytes % 16 == 0) {
        const uint4* from = reinterpret_cast<const uint4*>(sample.pixels);
        uint4* to = reinterpret_cast<uint4*>(out);
        for (unsigned at = first; at < bytes / 16; at += stride) {
            __stcs(to + at, __ldg(from + at));
        }
    } else {
        const unsigned* from = reinterpret_cast<const unsigned*>(sample.pixels);
        unsigned* to = reinterpret_cast<unsigned*>(out);
        for (unsigned at = first; at < bytes / 4; at += stride) {
            __stcs(to + at, __ldg(from + at));
        }
    }
}

// Four elements of a row a thread, each byte fetched alone: a flip turns the pixels around, not their channels, so only the
// store can be a vector.
template <class Element>
__device__ __forceinline__ void by_fours_placed(Element* out, const Sample& sample, Table<Element> table) {
    const unsigned in_row = 3 * sample.width / 4, fours = in_row * sample.height, stride = gridDim.x * blockDim.x;
    // The way from the end of a pixel to the start of its neighbour.
    const unsigned turn = sample.flip ? -6u : 0u;
    for (unsigned four = blockIdx.x * blockDim.x + threadIdx.x; four < fours; four += stride) {
        const unsigned y = four / in_row, element = 4 * (four - y * in_row);
        const unsigned x = element / 3, channel = element - 3 * x;
        const unsigned at = sample.source(y, x) + channel;
        unsigned bytes = 0;
        for (unsigned byte = 0; byte < 4; ++byte) {
            const unsigned from = at + byte + (channel + byte >= 3 ? turn : 0);
            bytes |= static_cast<unsigned>(__ldg(sample.pixels + from)) << (8 * byte);
        }
        const unsigned row0 = 256 * channel;
        const unsigned row1 = row0 == 512 ? 0 : row0 + 256, row2 = row1 == 512 ? 0 : row1 + 256;
        put(out + 4 * four, table, row0, row1, row2, row0, bytes);
    }
}

// An element a thread, for sizes that leave the rows unaligned.
template <class Element>
__device__ __forceinline__ void by_elements(Element* out, const Sample& sample, Table<Element> table) {
    const unsigned elements = 3 * sample.plane(), stride = gridDim.x * blockDim.x;
    for (unsigned element = blockIdx.x * blockDim.x + threadIdx.x; element < elements; element += stride) {
        const unsigned pixel = element / 3, channel = element - 3 * pixel;
        const unsigned y = pixel / sample.width, x = pixel - y * sample.width;
        __stcs(out + element, table.at(256 * channel, __ldg(sample.pixels + sample.source(y, x) + channel)));
    }
}

template <class Element>
__device__ __forceinline__ void finish_nhwc(Element* out, const Sample& sample, Table<Element> table,
                                            const void* results) {
    out += static_cast<unsigned long long>(blockIdx.y) * (3 * sample.plane());
    if (sample.as_stored() && sample.plane() % 4 == 0) {
        by_fours(out, sample, table, results);
        return;
    }
    table.fill(results);
    if (sample.width % 4 == 0) {
        by_fours_placed(out, sample, table);
    } else {
        by_elements(out, sample, table);
    }
}

#define FEEDSTOCK_FINISH(name, Element, layout)                                                                         \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                                                 \
        name(void* __restrict__ out, const unsigned char* __restrict__ pixels, const void* __restrict__ table,          \
             const Place* __restrict__ places, unsigned height, unsigned width, unsigned stored_height,                 \
             unsigned stored_width) {                                                                                   \
        __shared__ uint4 shared[Table<Element>::VECTORS];                                                               \
        layout(static_cast<Element*>(out), Sample(pixels, places, height, width, stored_height, stored_width),          \
               Table<Element>{shared}, table);                                                                          \
    }

FEEDSTOCK_FINISH(feedstock_finish_b8_nhwc, unsigned char, finish_nhwc)
FEEDSTOCK_FINISH(feedstock_finish_b8_nchw, unsigned char, finish_nchw)
FEEDSTOCK_FINISH(feedstock_finish_b16_nhwc, unsigned short, finish_nhwc)
FEEDSTOCK_FINISH(feedstock_finish_b16_nchw, unsigned short, finish_nchw)
FEEDSTOCK_FINISH(feedstock_finish_b32_nhwc, unsigned, finish_nhwc)
FEEDSTOCK_FINISH(feedstock_finish_b32_nchw, unsigned, finish_nchw)

#undef FEEDSTOCK_FINISH

// A simulated training step: uses the batch (one byte of it) and keeps its stream busy for so long, 10 s at most.
extern "C" __global__ void __launch_bounds__(BLOCK) feedstock_step(const void* reads, unsigned long long nanoseconds) {
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
        // Volatile: nobody looks at the byte, but it is read.
        (void)*static_cast<const volatile unsigned char*>(reads);
        const unsigned long long most = 10000000000ull;
        FEEDSTOCK_WAIT(nanoseconds < most ? nanoseconds : most);
    }
}

// A copy of 16-byte vectors, the ceiling of what any kernel here can do. Four under way a thread, with the same hints.
extern "C" __global__ void __launch_bounds__(BLOCK)
    feedstock_copy(void* __restrict__ out, const void* __restrict__ in, unsigned long long vectors) {
    const uint4* from = static_cast<const uint4*>(in);
    uint4* to = static_cast<uint4*>(out);
    const unsigned long long stride = static_cast<unsigned long long>(gridDim.x) * blockDim.x;
    unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; at + 3 * stride < vectors; at += 4 * stride) {
        const uint4 a = __ldg(from + at), b = __ldg(from + at + stride);
        const uint4 c = __ldg(from + at + 2 * stride), d = __ldg(from + at + 3 * stride);
        __stcs(to + at, a);
        __stcs(to + at + stride, b);
        __stcs(to + at + 2 * stride, c);
        __stcs(to + at + 3 * stride, d);
    }
    for (; at < vectors; at += stride) {
        __stcs(to + at, __ldg(from + at));
    }
}
