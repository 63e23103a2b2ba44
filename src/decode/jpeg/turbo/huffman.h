/* Huffman decoding of files whose one scan holds the whole image, in place of the library's own decoder of one MCU (the
 * blocks that are stored together: `jdhuff.c`). The result is always the library's: at anything but plain data (a
 * marker, the end, an invalid code, a block with too many coefficients) the MCU is left untouched to the library.
 *
 * Three quarters of decoding are here, in one chain: bits, code, length, bits. It is shortened by
 * - one look-up that gives a code's length and, where they fit, the bits of the value behind it and the value;
 * - skipping coefficients that are not needed (above the crop, beside it, and those of 1/8 but the first) by as many
 *   codes as one look-up covers;
 * - refilling eight bytes at a time, wherever there is no byte ff among them.
 *
 * Part of `shim.c`. Source of the format: ITU-T T.81 (1992), annexes C and F. */

/* State that this decoder shares with the library's, so that either can continue where the other stopped. The layout is
 * that of `jdhuff.c` and `jpegint.h` of libjpeg-turbo 3.1.0 on a 64-bit machine. */
typedef struct {
  void (*start_pass)(j_decompress_ptr cinfo);
  boolean (*decode_mcu)(j_decompress_ptr cinfo, JBLOCKROW *blocks);
  JDIMENSION (*decode_mcus)(void);
  boolean (*process_restart)(j_decompress_ptr cinfo);
  boolean insufficient_data;
  struct {
    size_t get_buffer; /* its `bits_left` lowest bits are to come, the highest of them first */
    int bits_left;
  } bits;
  int last_dc_val[MAX_COMPS_IN_SCAN];
  unsigned int restarts_to_go;
} Entropy;

/* `bitread_working_state` of `jdhuff.h`. */
typedef struct {
  const JOCTET *next_input_byte;
  size_t bytes_in_buffer, get_buffer;
  int bits_left;
  j_decompress_ptr cinfo;
} Reading;

extern boolean jpeg_fill_bit_buffer(Reading *reading, size_t get_buffer, int bits_left, int wanted);

/* Index bits of the look-up tables. */
#define DC_BITS 9
#define AC_BITS 10
#define PASS_BITS 10

/* Entry for DC and AC: in bits 0-5 the number of bits to drop (a shift takes six, so that no mask is needed), in
 * 8-12 the number of coefficients, in 16-31 the value, or its number of bits. */
#define ENTRY(bits, run, value) ((uint32_t)(bits) | (uint32_t)(run) << 8 | (uint32_t)(uint16_t)(value) << 16)
#define ENTRY_BITS(entry) ((entry) & 63)
#define ENTRY_RUN(entry) ((entry) >> 8 & 31)
#define ENTRY_VALUE(entry) ((int32_t)(entry) >> 16)
/* The block ends; the code is longer than the index; the value has yet to be read. */
#define ENTRY_END (1u << 6)
#define ENTRY_LONG (1u << 7)
#define ENTRY_MORE (1u << 13)
#define ENTRY_SPECIAL (ENTRY_END | ENTRY_MORE | ENTRY_LONG)

/* Entry for skipped coefficients: in bits 0-5 and 8-15 the sums over all codes in the index, in 16-20 and 24-28
 * those of the first code alone. `ENTRY_END` belongs to the last code, whose run is not in the sum. */
#define PASS_RUN(entry) ((entry) >> 8 & 255)
#define FIRST_BITS(entry) ((entry) >> 16 & 31)
#define FIRST_RUN(entry) ((entry) >> 24 & 31)

/* Codes of one table, for those longer than the index. */
typedef struct {
  uint32_t limit[17];  /* sixteen bits below this begin with a code of this length or a shorter one */
  int32_t offset[17];  /* a code plus this is the index of its symbol */
  const UINT8 *symbols;
} Codes;

typedef struct {
  Codes codes;
  uint32_t entries[1 << DC_BITS];
} DcTable;

typedef struct {
  Codes codes;
  uint32_t entries[1 << AC_BITS];
  uint32_t pass[1 << PASS_BITS];
} AcTable;

/* Tables of each kind in a baseline file. */
#define HUFFMAN_TABLES 2

typedef struct {
  boolean (*library)(j_decompress_ptr cinfo, JBLOCKROW *blocks);
  /* Of each block of an MCU: its tables, its component's prediction, and whether its AC coefficients are needed. */
  const DcTable *dc[D_MAX_BLOCKS_IN_MCU];
  const AcTable *ac[D_MAX_BLOCKS_IN_MCU];
  uint8_t component[D_MAX_BLOCKS_IN_MCU], wants_ac[D_MAX_BLOCKS_IN_MCU];
  /* MCUs of a row; the next one; the first and the last that are needed. */
  JDIMENSION columns, column, first, last;
  uint32_t done; /* MCUs that were not left to the library */
  DcTable dc_tables[HUFFMAN_TABLES];
  AcTable ac_tables[HUFFMAN_TABLES];
} Huffman;

_Static_assert(sizeof(Huffman) <= 22 << 10, "bound.rs counts 22 KiB for it");

/* Position of the k-th coefficient of a block; and, for those of a broken file, sixteen more. */
static const uint8_t NATURAL_ORDER[DCTSIZE2 + 16] = {
  0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,
  6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31,
  39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
};

#if defined(__GNUC__)
#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#else
#define LIKELY(condition) (condition)
#endif

/* --- tables --- */

/* Sign-extends the `size` bits of a value (T.81, table F.1). */
static inline int32_t extended(uint32_t bits, unsigned size) {
  return (int32_t)bits - (int32_t)(((bits >> (size - 1)) - 1) & ((1u << size) - 1));
}

/* Returns the symbol of one code without a look-up, or -1 for an invalid code. `window` is the next sixteen bits,
 * `*length` the first length to try, and afterwards the code's. */
static int symbol_of(const Codes *codes, uint32_t window, unsigned *length) {
  unsigned bits;
  for (bits = *length; bits <= 16; bits++)
    if (window < codes->limit[bits]) {
      *length = bits;
      return codes->symbols[((int32_t)(window >> (16 - bits)) + codes->offset[bits]) & 255];
    }
  return -1;
}

static void fill(uint32_t *entries, unsigned index_bits, uint32_t code, unsigned length, uint32_t entry) {
  uint32_t *to = entries + (code << (index_bits - length)), *end = to + (1u << (index_bits - length));
  while (to < end) *to++ = entry;
}

/* Fills the table with all codes of at most `index_bits` bits. The library has validated the codes. */
static void prepare(const JHUFF_TBL *table, int is_dc, Codes *codes, uint32_t *entries, unsigned index_bits) {
  uint32_t code = 0, at = 0, i;
  unsigned length;
  codes->symbols = table->huffval;
  codes->limit[0] = 0, codes->offset[0] = 0;
  for (i = 0; i < 1u << index_bits; i++) entries[i] = ENTRY_LONG;
  for (length = 1; length <= 16; length++, code <<= 1) {
    codes->offset[length] = (int32_t)at - (int32_t)code;
    for (i = 0; i < table->bits[length]; i++, code++, at++) {
      unsigned symbol = table->huffval[at], size = is_dc ? symbol : symbol & 15, run = is_dc ? 0 : symbol >> 4;
      if (length > index_bits) continue;
      if (size == 0) {
        int ends = !is_dc && run != 15;
        fill(entries, index_bits, code, length, ENTRY(length, run + 1, 0) | (ends ? ENTRY_END : 0));
      } else if (length + size > index_bits) {
        fill(entries, index_bits, code, length, ENTRY(length, run + 1, size) | ENTRY_MORE);
      } else {
        uint32_t value;
        for (value = 0; value < 1u << size; value++)
          fill(entries, index_bits, code << size | value, length + size,
               ENTRY(length + size, run + 1, extended(value, size)));
      }
    }
    codes->limit[length] = code << (16 - length);
  }
}

/* Fills the table for skipping coefficients: as many codes as fit the bits of an index. */
static void prepare_pass(const JHUFF_TBL *table, uint32_t *pass) {
  /* Of the code at the front of an index: in bits 0-4 its length, in 5-9 its run, in 10-13 the bits of its value. */
  uint16_t first[1 << PASS_BITS];
  uint32_t code = 0, at = 0, i, index;
  unsigned length;
  memset(first, 0, sizeof(first));
  for (length = 1; length <= PASS_BITS; length++, code <<= 1)
    for (i = 0; i < table->bits[length]; i++, code++, at++) {
      unsigned symbol = table->huffval[at], size = symbol & 15, run = symbol >> 4;
      uint32_t from = code << (PASS_BITS - length), to = (code + 1) << (PASS_BITS - length);
      /* A run of 0 ends the block. */
      uint16_t all = (uint16_t)(length | (size != 0 || run == 15 ? run + 1 : 0) << 5 | size << 10);
      while (from < to) first[from++] = all;
    }
  for (index = 0; index < 1u << PASS_BITS; index++) {
    uint32_t bits = 0, run = 0, entry = ENTRY_LONG;
    /* The index has to hold the bits of each code, but not those of its value. */
    while (bits < PASS_BITS && run < DCTSIZE2) {
      uint16_t next = first[index << bits & ((1u << PASS_BITS) - 1)];
      unsigned code_bits = next & 31, next_run = next >> 5 & 31, all_bits = code_bits + (next >> 10);
      if (code_bits == 0 || bits + code_bits > PASS_BITS) break;
      if (bits == 0) entry = all_bits << 16 | next_run << 24;
      bits += all_bits, run += next_run;
      entry = (entry & 0xFFFF0000u) | bits | run << 8 | (next_run == 0 ? ENTRY_END : 0);
      if (next_run == 0) break;
    }
    pass[index] = entry;
  }
}

/* --- blocks --- */

/* Refills to at least 32 bits, more than any code and its value have, or else leaves the MCU to the library. The
 * accumulator may hold bits beyond the `bits` that count; a refill repeats the same ones. */
#define REFILL()                                                                       \
  if (bits < 32) {                                                                     \
    uint64_t word;                                                                     \
    if (!LIKELY(at <= last)) return 0;                                                 \
    memcpy(&word, at, 8);                                                              \
    word = BIG_ENDIAN_64(word);                                                        \
    /* Is there a byte ff? */                                                          \
    if (LIKELY(((~word - 0x0101010101010101u) & word & 0x8080808080808080u) == 0)) {   \
      accumulator |= word >> bits;                                                     \
      at += (63 - bits) >> 3;                                                          \
      bits |= 56;                                                                      \
    } else {                                                                           \
      while (bits <= 56) {                                                             \
        uint64_t byte = at[0];                                                         \
        if (byte == 0xFF && at[1] != 0) break;                                         \
        at += byte == 0xFF ? 2 : 1;                                                    \
        accumulator |= byte << (56 - bits);                                            \
        bits += 8;                                                                     \
      }                                                                                \
      if (bits < 32) return 0;                                                         \
    }                                                                                  \
  }

#define DROP(count) (accumulator <<= (count), bits -= (count))

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define BIG_ENDIAN_64(word) (word)
#elif defined(_MSC_VER)
#include <stdlib.h>
#define BIG_ENDIAN_64(word) _byteswap_uint64(word)
#else
#define BIG_ENDIAN_64(word) __builtin_bswap64(word)
#endif

/* Bytes that one `REFILL` may read. */
#define AHEAD 18

/* Decodes one MCU's blocks, without writing them if `blocks` is null. Returns 0, with everything but the blocks as
 * it was, if the MCU is left to the library. */
static int huffman_blocks(j_decompress_ptr cinfo, const Huffman *self, JBLOCKROW *blocks) {
  Entropy *entropy = (Entropy *)cinfo->entropy;
  struct jpeg_source_mgr *src = cinfo->src;
  const uint8_t *at = src->next_input_byte, *last;
  unsigned bits = (unsigned)entropy->bits.bits_left;
  uint64_t accumulator = bits == 0 ? 0 : (uint64_t)entropy->bits.get_buffer << (64 - bits);
  int predictions[MAX_COMPS_IN_SCAN];
  int number;

  if (src->bytes_in_buffer < AHEAD) return 0;
  last = at + (src->bytes_in_buffer - AHEAD);
  memcpy(predictions, entropy->last_dc_val, sizeof(predictions));

  for (number = 0; number < cinfo->blocks_in_MCU; number++) {
    const DcTable *dc = self->dc[number];
    const AcTable *ac = self->ac[number];
    uint32_t entry;
    int32_t value;
    unsigned k = 1;

    REFILL();
    entry = dc->entries[accumulator >> (64 - DC_BITS)];
    value = ENTRY_VALUE(entry);
    if (entry & ENTRY_SPECIAL) {
      unsigned length = ENTRY_BITS(entry);
      if (entry & ENTRY_LONG) {
        length = DC_BITS + 1;
        value = symbol_of(&dc->codes, (uint32_t)(accumulator >> 48), &length);
        if (value < 0) return 0;
      }
      DROP(length);
      if (value != 0) {
        unsigned size = (unsigned)value;
        value = extended((uint32_t)(accumulator >> (64 - size)), size);
        DROP(size);
      }
    } else {
      DROP(ENTRY_BITS(entry));
    }
    /* The sum of a broken file's differences may overflow, as in the library. */
    value = (int32_t)((uint32_t)value + (uint32_t)predictions[self->component[number]]);
    predictions[self->component[number]] = value;

    if (blocks != NULL) (*blocks[number])[0] = (JCOEF)value;
    if (blocks != NULL && self->wants_ac[number]) {
      JCOEF *block = *blocks[number];
      while (k < DCTSIZE2) {
        REFILL();
        entry = ac->entries[accumulator >> (64 - AC_BITS)];
        if (LIKELY(!(entry & ENTRY_SPECIAL))) {
          DROP(ENTRY_BITS(entry));
          k += ENTRY_RUN(entry);
          block[NATURAL_ORDER[k - 1]] = (JCOEF)ENTRY_VALUE(entry);
        } else if (entry & ENTRY_END) {
          DROP(ENTRY_BITS(entry));
          break;
        } else {
          unsigned length = ENTRY_BITS(entry), run = ENTRY_RUN(entry), size = (unsigned)ENTRY_VALUE(entry);
          if (entry & ENTRY_LONG) {
            int symbol;
            length = AC_BITS + 1;
            symbol = symbol_of(&ac->codes, (uint32_t)(accumulator >> 48), &length);
            if (symbol < 0) return 0;
            run = ((unsigned)symbol >> 4) + 1, size = symbol & 15;
          }
          DROP(length);
          if (size == 0 && run != 16) break;
          k += run;
          if (size != 0) {
            block[NATURAL_ORDER[k - 1]] = (JCOEF)extended((uint32_t)(accumulator >> (64 - size)), size);
            DROP(size);
          }
        }
      }
    } else {
      while (k < DCTSIZE2) {
        REFILL();
        entry = ac->pass[accumulator >> (64 - PASS_BITS)];
        if (LIKELY(!(entry & ENTRY_LONG))) {
          unsigned after = k + PASS_RUN(entry), ends = entry & ENTRY_END;
          if (LIKELY(after < DCTSIZE2 || (after == DCTSIZE2 && !ends))) {
            DROP(ENTRY_BITS(entry));
            k = after;
            if (ends) break;
          } else {
            /* The block ends within these codes. */
            DROP(FIRST_BITS(entry));
            k += FIRST_RUN(entry);
          }
        } else {
          unsigned length = PASS_BITS + 1, size;
          int symbol = symbol_of(&ac->codes, (uint32_t)(accumulator >> 48), &length);
          if (symbol < 0) return 0;
          size = symbol & 15;
          DROP(length);
          DROP(size);
          if (size == 0 && symbol >> 4 != 15) break;
          k += ((unsigned)symbol >> 4) + 1;
        }
      }
    }
    if (k > DCTSIZE2) return 0;
  }

  src->bytes_in_buffer -= (size_t)(at - src->next_input_byte);
  src->next_input_byte = at;
  entropy->bits.get_buffer = bits == 0 ? 0 : (size_t)(accumulator >> (64 - bits));
  entropy->bits.bits_left = (int)bits;
  memcpy(entropy->last_dc_val, predictions, sizeof(predictions));
  return 1;
}

/* Reads as far ahead as the library, which skips a few stray bytes before a marker without a warning if it has read
 * up to that marker. */
static void huffman_look_ahead(j_decompress_ptr cinfo) {
  Entropy *entropy = (Entropy *)cinfo->entropy;
  Reading reading;
  reading.next_input_byte = cinfo->src->next_input_byte;
  reading.bytes_in_buffer = cinfo->src->bytes_in_buffer;
  reading.cinfo = cinfo;
  if (!jpeg_fill_bit_buffer(&reading, entropy->bits.get_buffer, entropy->bits.bits_left, 0)) return;
  cinfo->src->next_input_byte = reading.next_input_byte;
  cinfo->src->bytes_in_buffer = reading.bytes_in_buffer;
  entropy->bits.get_buffer = reading.get_buffer;
  entropy->bits.bits_left = reading.bits_left;
}

static boolean huffman_decode_mcu(j_decompress_ptr cinfo, Huffman *self, JBLOCKROW *blocks) {
  Entropy *entropy = (Entropy *)cinfo->entropy;
  int needed = self->column >= self->first && self->column <= self->last;
  int restarts = cinfo->restart_interval != 0;
  if (restarts && entropy->restarts_to_go == 0 && cinfo->unread_marker == 0) huffman_look_ahead(cinfo);
  if (++self->column == self->columns) self->column = 0;
  if (entropy->insufficient_data || cinfo->unread_marker != 0 || (restarts && entropy->restarts_to_go == 0) ||
      !huffman_blocks(cinfo, self, needed ? blocks : NULL))
    return (*self->library)(cinfo, blocks);
  if (restarts) entropy->restarts_to_go--;
  self->done++;
  return TRUE;
}

/* Returns true if this decoder supports the file, as it does most. */
static int huffman_supports(j_decompress_ptr cinfo) {
  int at;
  for (at = 0; at < cinfo->num_components; at++) {
    const jpeg_component_info *component = &cinfo->comp_info[at];
    if (component->dc_tbl_no >= HUFFMAN_TABLES || component->ac_tbl_no >= HUFFMAN_TABLES ||
        !component->component_needed)
      return 0;
  }
  return sizeof(size_t) == 8 && !cinfo->arith_code && !jpeg_has_multiple_scans(cinfo);
}

/* Replaces the library's decoder at the start of an image. `first` to `last` are the columns of MCUs that are needed;
 * `skips` is true if rows above them are skipped. */
static void huffman_begin(j_decompress_ptr cinfo, Huffman *self, JDIMENSION first, JDIMENSION last, int skips) {
  int passes = skips || first > 0 || last + 1 < cinfo->MCUs_per_row || cinfo->min_DCT_scaled_size == 1;
  int table, number;
  memset(self, 0, offsetof(Huffman, dc_tables));
  for (table = 0; table < HUFFMAN_TABLES; table++) {
    int dc_used = 0, ac_used = 0, at;
    for (at = 0; at < cinfo->num_components; at++) {
      dc_used |= cinfo->comp_info[at].dc_tbl_no == table;
      ac_used |= cinfo->comp_info[at].ac_tbl_no == table;
    }
    if (dc_used) {
      DcTable *dc = &self->dc_tables[table];
      prepare(cinfo->dc_huff_tbl_ptrs[table], 1, &dc->codes, dc->entries, DC_BITS);
    }
    if (ac_used) {
      AcTable *ac = &self->ac_tables[table];
      prepare(cinfo->ac_huff_tbl_ptrs[table], 0, &ac->codes, ac->entries, AC_BITS);
      if (passes) prepare_pass(cinfo->ac_huff_tbl_ptrs[table], ac->pass);
    }
  }
  for (number = 0; number < cinfo->blocks_in_MCU; number++) {
    const jpeg_component_info *component = cinfo->cur_comp_info[cinfo->MCU_membership[number]];
    self->dc[number] = &self->dc_tables[component->dc_tbl_no];
    self->ac[number] = &self->ac_tables[component->ac_tbl_no];
    self->component[number] = (uint8_t)cinfo->MCU_membership[number];
    self->wants_ac[number] = component->DCT_scaled_size > 1;
  }
  self->columns = cinfo->MCUs_per_row;
  self->first = first;
  self->last = last;
  self->library = ((Entropy *)cinfo->entropy)->decode_mcu;
}
