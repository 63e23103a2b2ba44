// Converts a batch on the GPU: decoded samples, u8 NHWC, become its elements in NHWC or NCHW. Beside that, a simulated
// training step, and the copy that conversion is measured against.
//
// No arithmetic on floats: an element is one of 256 values a channel, so each byte is looked up in a table of results that
// the host computed. CPU and GPU then agree bit for bit by construction, and a 16-bit float is just 16 bits.
//
// Built by `scripts/kernels` into kernels.ptx, which is what ships: NVRTC, no headers. `tests/standin/host_kernels.cpp`
// builds the same text for the CPU, where the tests run it.
//
// Launch: grid.y samples, blocks of at most BLOCK threads, and grid.x blocks that share the quads (4 neighboring pixels)
// of a sample. A batch of more than 65535 samples takes several launches, each but the last of a multiple of 256 samples,
// so that its pointers stay aligned. `pixels`, `table` and `out` are aligned to 16 bytes or more. No kernel reads a byte
// outside the batch's pixels, nor writes one outside its elements.
//
// The bound, by calculation, is memory. A quad of b32 moves 60 bytes, b16 36, b8 24; at 13 bytes a cycle, an H100's share
// of its bandwidth per SM, a warp's quads take 148, 89 and 59 cycles there. The table is the most expensive of the rest: 32
// random look-ups in 32 banks take about 3.5 turns, 42 cycles for the 12 look-ups of a quad, and with the loads and stores
// the shared-memory pipe is busy 63 (b32) and 57 (b16) cycles: hidden, if enough warps are there to overlap. Neighbors in
// an image are alike, which takes fewer turns. Reads in flight: 12 bytes a thread, 24 KiB an SM when it is full.

// 8 blocks fill an SM of 2048 threads, and are small enough to even out at the end of a launch.
enum : unsigned { BLOCK = 256 };

// The host build replaces these: a clock, and a wait for it.
#ifndef FEEDSTOCK_WAIT
__device__ __forceinline__ unsigned long long global_nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Bounded even if the timer stands still: no GPU makes more than 4 cycles a nanosecond.
__device__ __forceinline__ void wait(unsigned long long nanoseconds) {
    const unsigned long long begin = global_nanoseconds();
    const long long cycle = clock64();
    while (global_nanoseconds() - begin < nanoseconds &&
           static_cast<unsigned long long>(clock64() - cycle) < 4 * nanoseconds) {
    }
}
#define FEEDSTOCK_WAIT(nanoseconds) wait(nanoseconds)
#endif

// The results of an element type, in shared memory: 256 a channel. Bytes stay as they are and need none.
template <class Element>
struct Table {
    enum : unsigned { VECTORS = 3 * 256 * sizeof(Element) / sizeof(uint4) };
    uint4* shared;

    // Called once by every thread of the block, before the first look-up.
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

// Streaming stores (`__stcs`): a batch is read a step later, when the training step that runs now has long turned the L2
// over, and should take no room from it.

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

// 12 bytes: R0 G0 B0 R1, G1 B1 R2 G2, B2 R3 G3 B3, the lowest byte first.
struct Quad {
    unsigned words[3];
};

// The quads of a sample of `plane` pixels, by planes; `plane` is a multiple of 4. The first is under way while the table is
// filled, and the next while one is looked up.
template <class Element>
__device__ __forceinline__ void by_planes(Element* out, const unsigned char* pixels, unsigned plane,
                                          Table<Element> table, const void* results) {
    const unsigned* words = reinterpret_cast<const unsigned*>(pixels);
    const auto load = [=](unsigned quad) -> Quad {
        return {{__ldg(words + 3 * quad), __ldg(words + 3 * quad + 1), __ldg(words + 3 * quad + 2)}};
    };
    const unsigned quads = plane / 4, stride = gridDim.x * blockDim.x;
    unsigned quad = blockIdx.x * blockDim.x + threadIdx.x;
    Quad next = {};
    if (quad < quads) {
        next = load(quad);
    }
    table.fill(results);
    while (quad < quads) {
        const unsigned a = next.words[0], b = next.words[1], c = next.words[2];
        Element* to = out + 4 * quad;
        quad += stride;
        if (quad < quads) {
            next = load(quad);
        }
        put(to, table, 0, 0, 0, 0, __byte_perm(__byte_perm(a, b, 0x0630), c, 0x5210));
        put(to + plane, table, 256, 256, 256, 256, __byte_perm(__byte_perm(a, b, 0x0741), c, 0x6210));
        put(to + 2 * plane, table, 512, 512, 512, 512, __byte_perm(__byte_perm(a, b, 0x0052), c, 0x7410));
    }
}

// A pixel a thread, for sizes that leave the planes unaligned.
template <class Element>
__device__ __forceinline__ void by_pixels(Element* out, const unsigned char* pixels, unsigned plane,
                                          Table<Element> table) {
    const unsigned stride = gridDim.x * blockDim.x;
    for (unsigned pixel = blockIdx.x * blockDim.x + threadIdx.x; pixel < plane; pixel += stride) {
        const unsigned char* from = pixels + 3 * pixel;
        Element* to = out + pixel;
        __stcs(to, table.at(0, __ldg(from)));
        __stcs(to + plane, table.at(256, __ldg(from + 1)));
        __stcs(to + 2 * plane, table.at(512, __ldg(from + 2)));
    }
}

template <class Element>
__device__ __forceinline__ void convert_nchw(Element* out, const unsigned char* pixels, unsigned plane,
                                             Table<Element> table, const void* results) {
    if (plane % 4 == 0) {
        by_planes(out, pixels, plane, table, results);
    } else {
        table.fill(results);
        by_pixels(out, pixels, plane, table);
    }
}

// A sample's elements in their stored order, four a thread; three fours at once, a block apart, so that a thread has as
// much under way as by planes. A block's range is a multiple of 3 fours long, so each of a thread's three keeps its
// channels.
template <class Element>
__device__ __forceinline__ void by_fours(Element* out, const unsigned char* pixels, unsigned plane,
                                         Table<Element> table, const void* results) {
    const unsigned* words = reinterpret_cast<const unsigned*>(pixels);
    const unsigned fours = 3 * plane / 4, stride = 3 * gridDim.x * blockDim.x;
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

// Bytes in their stored order are a copy.
__device__ __forceinline__ void by_fours(unsigned char* out, const unsigned char* pixels, unsigned plane,
                                         Table<unsigned char>, const void*) {
    const unsigned bytes = 3 * plane, stride = gridDim.x * blockDim.x;
    const unsigned first = blockIdx.x * blockDim.x + threadIdx.x;
    if (bytes % 16 == 0) {
        const uint4* from = reinterpret_cast<const uint4*>(pixels);
        uint4* to = reinterpret_cast<uint4*>(out);
        for (unsigned at = first; at < bytes / 16; at += stride) {
            __stcs(to + at, __ldg(from + at));
        }
    } else {
        const unsigned* from = reinterpret_cast<const unsigned*>(pixels);
        unsigned* to = reinterpret_cast<unsigned*>(out);
        for (unsigned at = first; at < bytes / 4; at += stride) {
            __stcs(to + at, __ldg(from + at));
        }
    }
}

// An element a thread, for sizes that leave the samples unaligned.
template <class Element>
__device__ __forceinline__ void by_elements(Element* out, const unsigned char* pixels, unsigned plane,
                                            Table<Element> table) {
    const unsigned elements = 3 * plane, stride = gridDim.x * blockDim.x;
    for (unsigned element = blockIdx.x * blockDim.x + threadIdx.x; element < elements; element += stride) {
        __stcs(out + element, table.at(256 * (element % 3), __ldg(pixels + element)));
    }
}

template <class Element>
__device__ __forceinline__ void convert_nhwc(Element* out, const unsigned char* pixels, unsigned plane,
                                             Table<Element> table, const void* results) {
    if (plane % 4 == 0) {
        by_fours(out, pixels, plane, table, results);
    } else {
        table.fill(results);
        by_elements(out, pixels, plane, table);
    }
}

// `plane`: pixels of a sample. The sample of a block is blockIdx.y.
#define FEEDSTOCK_CONVERT(name, Element, layout)                                                                        \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                                                 \
        name(void* __restrict__ out, const unsigned char* __restrict__ pixels, const void* __restrict__ table,          \
             unsigned plane) {                                                                                          \
        __shared__ uint4 shared[Table<Element>::VECTORS];                                                               \
        const unsigned long long first = static_cast<unsigned long long>(blockIdx.y) * (3 * plane);                     \
        layout(static_cast<Element*>(out) + first, pixels + first, plane, Table<Element>{shared}, table);               \
    }

FEEDSTOCK_CONVERT(feedstock_convert_b8_nhwc, unsigned char, convert_nhwc)
FEEDSTOCK_CONVERT(feedstock_convert_b8_nchw, unsigned char, convert_nchw)
FEEDSTOCK_CONVERT(feedstock_convert_b16_nhwc, unsigned short, convert_nhwc)
FEEDSTOCK_CONVERT(feedstock_convert_b16_nchw, unsigned short, convert_nchw)
FEEDSTOCK_CONVERT(feedstock_convert_b32_nhwc, unsigned, convert_nhwc)
FEEDSTOCK_CONVERT(feedstock_convert_b32_nchw, unsigned, convert_nchw)

#undef FEEDSTOCK_CONVERT

// A simulated training step: reads one byte of the batch and keeps its stream busy for so long, 10 s at most.
extern "C" __global__ void __launch_bounds__(BLOCK) feedstock_step(const void* reads, unsigned long long nanoseconds) {
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
        // Volatile: the byte is read although it is not used.
        (void)*static_cast<const volatile unsigned char*>(reads);
        const unsigned long long most = 10000000000ull;
        FEEDSTOCK_WAIT(nanoseconds < most ? nanoseconds : most);
    }
}

// A copy of 16-byte vectors, the upper bound for every kernel here. Four under way a thread, with the same hints.
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
