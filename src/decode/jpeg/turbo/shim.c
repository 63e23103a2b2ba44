/* Decodes one image with libjpeg-turbo, from its header to its last row, in memory that the caller provides. It never
 * allocates and never calls back into Rust; an error of the library becomes a return code.
 *
 * - Errors. The library reports by not returning: its error handler jumps to the entry point of this file that was
 *   called. No frame of Rust lies between the two, so no Rust frame is unwound.
 * - Memory. The library takes all of its memory from the methods of `jpeg_memory_mgr`. Here they take pieces of one
 *   arena; nothing is ever given back, since the arena lives as long as the image. A piece that does not fit is an
 *   error. This state, too, lies at the arena's front, so an image starts from scratch: no table, flag or pointer of
 *   an earlier one can be left over.
 * - Creation. `jpeg_create_decompress` installs a manager that allocates before it can be replaced. `create` does
 *   what that function does in version 3.1.0 (`jdapimin.c`), with the arena's manager. It depends on the library's
 *   internals (two functions, one number, one size), as `huffman.h` does and nothing else here. Both have to be
 *   compared with a new version of the library, which is why the version is checked below.
 *
 * Source: `libjpeg.txt` and the headers of libjpeg-turbo 3.1.0. */

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "huffman.h"

#if LIBJPEG_TURBO_VERSION_NUMBER != 3001000 || JPEG_LIB_VERSION != 62
#error "`create` repeats jpeg_CreateDecompress of libjpeg-turbo 3.1.0: compare it with this version first"
#endif

/* The alignment of the library's own manager: SIMD reads and writes whole vectors. */
#define ALIGN ((size_t)32)
#define ROW_ALIGN (2 * ALIGN)

/* `jinit_marker_reader`, `jinit_input_controller`: `jpegint.h`. `my_decomp_master` has 152 bytes: `jdmaster.h`. */
extern void jinit_marker_reader(j_decompress_ptr cinfo);
extern void jinit_input_controller(j_decompress_ptr cinfo);
#define DSTATE_START 200
#define MASTER_BYTES 192

/* Return codes of the entry points; `shim.rs` has the same. */
enum { GOOD = 0, DAMAGED = 1, TRUNCATED = 2, OUT_OF_MEMORY = 3, TOO_MANY_SCANS = 4, HEADER_MISMATCH = 5 };

/* Parameters of one image. Columns and rows count in the scaled image. */
typedef struct {
  uint32_t width, height, component_count; /* of the header that was read before */
  uint32_t denominator;
  uint32_t x, columns, y;
  uint32_t scans_max;
  uint32_t accept_truncated;
  uint32_t own_codes; /* true: `huffman.h` reads the Huffman codes that it supports */
} Params;

typedef struct {
  struct jpeg_decompress_struct cinfo;
  struct jpeg_error_mgr err;
  struct jpeg_memory_mgr mem;
  struct jpeg_source_mgr src;
  struct jpeg_progress_mgr progress;
  unsigned char *free_at, *end; /* rest of the arena */
  unsigned char *cmyk;          /* a row of CMYK, if the image is in CMYK */
  Huffman *huffman;             /* if it replaces the library's decoder */
  uint32_t scans_max, warnings;
  int accept_truncated, in_header, failed;
  /* From here on, nothing is read before it is written. */
  char text[JMSG_LENGTH_MAX];
  jmp_buf jump;
} Jpeg;

_Static_assert(sizeof(Jpeg) <= 2048, "bound.rs counts 2048 bytes for it");

/* All coefficients of an image. The library asks for them as "virtual": here they are all in memory. */
struct jvirt_barray_control {
  JBLOCKARRAY rows;
  JDIMENSION blocks_per_row, row_count, zeroed;
  struct jvirt_barray_control *next;
};

/* On some systems `setjmp` asks the kernel for the signal mask, which is not needed. */
#if defined(__APPLE__) || defined(__FreeBSD__) || defined(__OpenBSD__) || defined(__NetBSD__)
#define SETJMP(jump) _setjmp(jump)
#define LONGJMP(jump) _longjmp(jump, 1)
#else
#define SETJMP(jump) setjmp(jump)
#define LONGJMP(jump) longjmp(jump, 1)
#endif

static Jpeg *self_of(j_common_ptr cinfo) { return (Jpeg *)cinfo->client_data; }

static _Noreturn void fail(Jpeg *self, int code) {
  self->failed = code;
  LONGJMP(self->jump);
}

/* --- errors --- */

static void keep_text(j_common_ptr cinfo) { (*cinfo->err->format_message)(cinfo, self_of(cinfo)->text); }

static int code_of(int message) {
  return message == JWRN_JPEG_EOF || message == JERR_INPUT_EOF || message == JERR_INPUT_EMPTY ? TRUNCATED : DAMAGED;
}

static void error_exit(j_common_ptr cinfo) {
  keep_text(cinfo);
  fail(self_of(cinfo), code_of(cinfo->err->msg_code));
}

static void emit_message(j_common_ptr cinfo, int level) {
  Jpeg *self = self_of(cinfo);
  if (level >= 0) return;
  switch (cinfo->err->msg_code) {
  /* Odd, but no damage. */
  case JWRN_ADOBE_XFORM:
  case JWRN_JFIF_MAJOR:
    return;
  /* Other readers, the library's own tools included, skip bytes between the segments of the header. */
  case JWRN_EXTRANEOUS_DATA:
    if (self->in_header) return;
    break;
  default:
    break;
  }
  if (self->warnings++ == 0) keep_text(cinfo);
  if (!self->accept_truncated) fail(self, code_of(cinfo->err->msg_code));
}

static void output_message(j_common_ptr cinfo) { (void)cinfo; }

static void progress_monitor(j_common_ptr cinfo) {
  /* Called for each row of blocks, so a file of nothing but scans is refused at the first one too many. */
  Jpeg *self = self_of(cinfo);
  if ((uint32_t)self->cinfo.input_scan_number > self->scans_max) fail(self, TOO_MANY_SCANS);
}

/* --- memory --- */

static void *take(Jpeg *self, size_t bytes) {
  /* `free_at` is aligned, and stays so after a piece that is rounded up. */
  size_t left = (size_t)(self->end - self->free_at);
  unsigned char *piece = self->free_at;
  if (bytes > left || (bytes = (bytes + ALIGN - 1) & ~(ALIGN - 1)) > left) fail(self, OUT_OF_MEMORY);
  self->free_at += bytes;
  return piece;
}

/* A table of `rows` pointers, and what they point to. */
static void **take_rows(Jpeg *self, size_t row_bytes, size_t rows) {
  void **table = take(self, rows * sizeof(void *));
  unsigned char *first;
  size_t row;
  /* A side is at most 65535 and a block 128 bytes, so with 64 bits the product is one. */
  if (rows != 0 && row_bytes > SIZE_MAX / rows) fail(self, OUT_OF_MEMORY);
  first = take(self, row_bytes * rows);
  for (row = 0; row < rows; row++) table[row] = first + row * row_bytes;
  return table;
}

static void *alloc_any(j_common_ptr cinfo, int pool, size_t bytes) {
  (void)pool;
  return take(self_of(cinfo), bytes);
}

static JSAMPARRAY alloc_sarray(j_common_ptr cinfo, int pool, JDIMENSION samples, JDIMENSION rows) {
  (void)pool;
  return (JSAMPARRAY)take_rows(self_of(cinfo), ((size_t)samples + ROW_ALIGN - 1) & ~(ROW_ALIGN - 1), rows);
}

static JBLOCKARRAY alloc_barray(j_common_ptr cinfo, int pool, JDIMENSION blocks, JDIMENSION rows) {
  (void)pool;
  return (JBLOCKARRAY)take_rows(self_of(cinfo), (size_t)blocks * sizeof(JBLOCK), rows);
}

static jvirt_sarray_ptr request_virt_sarray(j_common_ptr cinfo, int pool, boolean zero, JDIMENSION samples,
                                            JDIMENSION rows, JDIMENSION rows_max) {
  /* For quantizing to a palette in two passes, which is never requested. */
  (void)pool, (void)zero, (void)samples, (void)rows, (void)rows_max;
  ERREXIT(cinfo, JERR_NOT_COMPILED);
  return NULL;
}

static JSAMPARRAY access_virt_sarray(j_common_ptr cinfo, jvirt_sarray_ptr array, JDIMENSION first, JDIMENSION rows,
                                     boolean writable) {
  (void)array, (void)first, (void)rows, (void)writable;
  ERREXIT(cinfo, JERR_NOT_COMPILED);
  return NULL;
}

static jvirt_barray_ptr request_virt_barray(j_common_ptr cinfo, int pool, boolean zero, JDIMENSION blocks,
                                            JDIMENSION rows, JDIMENSION rows_max) {
  jvirt_barray_ptr array = take(self_of(cinfo), sizeof(*array));
  (void)rows_max;
  array->rows = alloc_barray(cinfo, pool, blocks, rows);
  array->blocks_per_row = blocks;
  array->row_count = rows;
  array->zeroed = zero ? 0 : rows;
  return array;
}

static void realize_virt_arrays(j_common_ptr cinfo) { (void)cinfo; }

static JBLOCKARRAY access_virt_barray(j_common_ptr cinfo, jvirt_barray_ptr array, JDIMENSION first, JDIMENSION rows,
                                      boolean writable) {
  JDIMENSION end = first + rows;
  (void)writable;
  if (end < first || end > array->row_count) ERREXIT(cinfo, JERR_BAD_VIRTUAL_ACCESS);
  /* Rows are zeroed as they are first looked at, so that pages no scan has reached stay untouched. */
  if (array->zeroed < end) {
    memset(array->rows[array->zeroed], 0,
           (size_t)(end - array->zeroed) * array->blocks_per_row * sizeof(JBLOCK));
    array->zeroed = end;
  }
  return array->rows + first;
}

static void free_pool(j_common_ptr cinfo, int pool) { (void)cinfo, (void)pool; }

static void self_destruct(j_common_ptr cinfo) { (void)cinfo; }

/* --- encoded bytes --- */

static void init_source(j_decompress_ptr cinfo) { (void)cinfo; }

static boolean fill_input_buffer(j_decompress_ptr cinfo) {
  static const JOCTET END[2] = { 0xFF, JPEG_EOI };
  WARNMS(cinfo, JWRN_JPEG_EOF);
  cinfo->src->next_input_byte = END;
  cinfo->src->bytes_in_buffer = sizeof(END);
  return TRUE;
}

static void skip_input_data(j_decompress_ptr cinfo, long bytes) {
  struct jpeg_source_mgr *src = cinfo->src;
  if (bytes <= 0) return;
  if ((size_t)bytes > src->bytes_in_buffer) {
    (void)fill_input_buffer(cinfo);
  } else {
    src->next_input_byte += bytes;
    src->bytes_in_buffer -= (size_t)bytes;
  }
}

static void term_source(j_decompress_ptr cinfo) { (void)cinfo; }

/* --- the image --- */

static void create(Jpeg *self, const unsigned char *encoded, size_t encoded_bytes) {
  j_decompress_ptr cinfo = &self->cinfo;
  cinfo->err = jpeg_std_error(&self->err);
  self->err.error_exit = error_exit;
  self->err.emit_message = emit_message;
  self->err.output_message = output_message;
  cinfo->client_data = self;

  self->mem.alloc_small = alloc_any;
  self->mem.alloc_large = alloc_any;
  self->mem.alloc_sarray = alloc_sarray;
  self->mem.alloc_barray = alloc_barray;
  self->mem.request_virt_sarray = request_virt_sarray;
  self->mem.request_virt_barray = request_virt_barray;
  self->mem.realize_virt_arrays = realize_virt_arrays;
  self->mem.access_virt_sarray = access_virt_sarray;
  self->mem.access_virt_barray = access_virt_barray;
  self->mem.free_pool = free_pool;
  self->mem.self_destruct = self_destruct;
  self->mem.max_alloc_chunk = 1000000000L;
  cinfo->mem = &self->mem;

  self->progress.progress_monitor = progress_monitor;
  cinfo->progress = &self->progress;

  cinfo->is_decompressor = TRUE;
  jinit_marker_reader(cinfo);
  jinit_input_controller(cinfo);
  cinfo->data_precision = BITS_IN_JSAMPLE;
  cinfo->global_state = DSTATE_START;
  cinfo->master = memset(take(self, MASTER_BYTES), 0, MASTER_BYTES);

  self->src.init_source = init_source;
  self->src.fill_input_buffer = fill_input_buffer;
  self->src.skip_input_data = skip_input_data;
  self->src.resync_to_restart = jpeg_resync_to_restart;
  self->src.term_source = term_source;
  self->src.next_input_byte = encoded;
  self->src.bytes_in_buffer = encoded_bytes;
  cinfo->src = &self->src;
}

static boolean decode_mcu(j_decompress_ptr cinfo, JBLOCKROW *blocks) {
  return huffman_decode_mcu(cinfo, self_of((j_common_ptr)cinfo)->huffman, blocks);
}

/* Takes over Huffman decoding, once the library has made its tables. `x` and `width` are the results of
 * `jpeg_crop_scanline`. */
static void read_codes_ourselves(Jpeg *self, JDIMENSION x, JDIMENSION width, int skips) {
  j_decompress_ptr cinfo = &self->cinfo;
  int factor = cinfo->num_components == 1 ? 1 : cinfo->max_h_samp_factor;
  JDIMENSION mcu = (JDIMENSION)(cinfo->min_DCT_scaled_size * factor);
  if (!huffman_supports(cinfo)) return;
  self->huffman = take(self, sizeof(Huffman));
  huffman_begin(cinfo, self->huffman, x / mcu, (x + width - 1) / mcu, skips);
  ((Entropy *)cinfo->entropy)->decode_mcu = decode_mcu;
}

/* Begins an image in `arena`, up to its first requested row. `*out` is set whenever the arena holds the state, also
 * for an image that fails; `*first_column` and `*columns` describe each row. */
int feedstock_jpeg_start(Jpeg **out, unsigned char *arena, size_t arena_bytes, const unsigned char *encoded,
                         size_t encoded_bytes, const Params *params, uint32_t *first_column, uint32_t *columns) {
  size_t before = (size_t)(-(uintptr_t)arena) & (ROW_ALIGN - 1);
  size_t state_bytes = (sizeof(Jpeg) + ROW_ALIGN - 1) & ~(ROW_ALIGN - 1);
  j_decompress_ptr cinfo;
  JDIMENSION x, width;
  Jpeg *self;

  *out = NULL;
  if (arena_bytes < before + state_bytes) return OUT_OF_MEMORY;
  self = (Jpeg *)(arena + before);
  memset(self, 0, offsetof(Jpeg, text));
  self->text[0] = 0;
  self->free_at = arena + before + state_bytes;
  self->end = arena + arena_bytes;
  self->scans_max = params->scans_max;
  self->accept_truncated = params->accept_truncated != 0;
  *out = self;
  if (SETJMP(self->jump)) return self->failed;

  create(self, encoded, encoded_bytes);
  cinfo = &self->cinfo;
  self->in_header = 1;
  jpeg_read_header(cinfo, TRUE);
  self->in_header = 0;
  if (cinfo->image_width != params->width || cinfo->image_height != params->height ||
      (uint32_t)cinfo->num_components != params->component_count)
    fail(self, HEADER_MISMATCH);

  cinfo->out_color_space =
      cinfo->jpeg_color_space == JCS_CMYK || cinfo->jpeg_color_space == JCS_YCCK ? JCS_CMYK : JCS_RGB;
  cinfo->scale_num = 1;
  cinfo->scale_denom = params->denominator;
  cinfo->dct_method = JDCT_ISLOW;
  cinfo->do_fancy_upsampling = TRUE;
  /* It guesses the coefficients that a truncated progressive file lacks; here such a file is an error, or stays as
   * it is. */
  cinfo->do_block_smoothing = FALSE;
  jpeg_start_decompress(cinfo);

  x = params->x;
  width = params->columns;
  jpeg_crop_scanline(cinfo, &x, &width);
  *first_column = x;
  *columns = width;
  if (cinfo->out_color_space == JCS_CMYK) self->cmyk = take(self, (size_t)width * 4);
  if (params->own_codes) read_codes_ourselves(self, x, width, params->y != 0);
  if (params->y != 0) jpeg_skip_scanlines(cinfo, params->y);
  return GOOD;
}

/* Light of one color that passes two inks, rounded. */
static inline unsigned char through(unsigned a, unsigned b) {
  unsigned v = a * b + 128;
  return (unsigned char)((v + (v >> 8)) >> 8);
}

/* Inks are taken as Adobe's programs store them, as the light that is left, with or without an Adobe marker: so do
 * Pillow and the other decoders here. */
static void cmyk_to_rgb(const unsigned char *ink, unsigned char *rgb, size_t pixels) {
  for (; pixels != 0; pixels--, ink += 4, rgb += 3) {
    rgb[0] = through(ink[0], ink[3]);
    rgb[1] = through(ink[1], ink[3]);
    rgb[2] = through(ink[2], ink[3]);
  }
}

/* Apart from `setjmp`, which leaves the variables of its own function undefined after a jump. */
#if defined(__GNUC__)
__attribute__((noinline))
#endif
static void read_row(Jpeg *self, unsigned char *out) {
  JSAMPROW row = self->cmyk ? self->cmyk : out;
  if (jpeg_read_scanlines(&self->cinfo, &row, 1) == 0) ERREXIT(&self->cinfo, JERR_CANT_SUSPEND);
  if (self->cmyk) cmyk_to_rgb(self->cmyk, out, self->cinfo.output_width);
}

/* Writes the next row, of `columns` pixels. The caller counts rows. */
int feedstock_jpeg_read_row(Jpeg *self, unsigned char *out) {
  if (self->failed) return self->failed;
  if (SETJMP(self->jump)) return self->failed;
  read_row(self, out);
  return GOOD;
}

/* Number of warnings so far, and the library's message for the first of them or for the error. */
uint32_t feedstock_jpeg_warnings(const Jpeg *self) { return self->warnings; }

const char *feedstock_jpeg_text(const Jpeg *self) { return self->text; }

/* Bytes of its arena that the image has used, without those before the state: for the tests of the bound. */
size_t feedstock_jpeg_used(const Jpeg *self) { return (size_t)(self->free_at - (const unsigned char *)self); }

/* Number of MCUs that `huffman.h` has decoded so far, for the tests. */
uint32_t feedstock_jpeg_own_mcus(const Jpeg *self) { return self->huffman ? self->huffman->done : 0; }
