/* Owns the conversation with libjpeg-turbo: one picture from header to last row, in memory that the caller gave. It must
 * never allocate, never call back into Rust, and never let an error of the library pass this file other than as a code.
 *
 * - Errors. The library reports by not returning: its error handler jumps to the entry point of this file that was
 *   called. No frame of Rust lies between the two, so nothing is unwound that must not be.
 * - Memory. The library takes all of its memory from the methods of `jpeg_memory_mgr`. Here they cut pieces off one
 *   arena; nothing is ever given back, since the whole arena goes when the picture does. What does not fit is an error.
 *   This state, too, lies at the arena's front, so a picture begins from nothing: no table, no flag, no pointer of an
 *   earlier one can be left over.
 * - Creation. `jpeg_create_decompress` installs a manager that allocates before anybody can replace it. `create` does
 *   what that function does in version 3.1.0 (`jdapimin.c`), with the arena's manager. It leans on the library's
 *   insides (two functions, one number, one size), as `huffman.h` does and nothing else here. A new version of the
 *   library has to be held against both, which is why the version is checked below.
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
#error "`create` repeats jpeg_CreateDecompress of libjpeg-turbo 3.1.0: hold it against this version, then change this line"
#endif

/* As the library's own manager has it: SIMD reads and writes whole vectors. */
#define ALIGN ((size_t)32)
#define ROW_ALIGN (2 * ALIGN)

/* `jinit_marker_reader`, `jinit_input_controller`: `jpegint.h`. `my_decomp_master` has 152 bytes: `jdmaster.h`. */
extern void jinit_marker_reader(j_decompress_ptr cinfo);
extern void jinit_input_controller(j_decompress_ptr cinfo);
#define DSTATE_START 200
#define MASTER_BYTES 192

/* Beyond that, a row is read by as many calls. */
#define ROWS_AT_ONCE 16

/* What an entry point returns; `shim.rs` has the same. */
enum { GOOD = 0, DAMAGED = 1, ENDS_EARLY = 2, NO_ROOM = 3, TOO_MANY_SCANS = 4, OTHER_PICTURE = 5 };

/* What is asked for. Columns and rows count in the scaled picture. */
typedef struct {
  uint32_t width, height, component_count; /* of the header that was read before */
  uint32_t denominator;
  uint32_t x, columns, y;
  uint32_t scans_max;
  uint32_t accept_truncated;
  uint32_t own_codes; /* whether Huffman codes are read by `huffman.h` where it knows them */
} Ask;

typedef struct {
  struct jpeg_decompress_struct cinfo;
  struct jpeg_error_mgr err;
  struct jpeg_memory_mgr mem;
  struct jpeg_source_mgr src;
  struct jpeg_progress_mgr progress;
  unsigned char *free_at, *end; /* what is left of the arena */
  unsigned char *ink;           /* a row of CMYK, if the picture is in CMYK */
  Huffman *huffman;             /* if it takes the library's decoder's place */
  uint32_t scans_max, warnings;
  int accept_truncated, in_header, failed;
  /* From here on, nothing is read before it is written. */
  char text[JMSG_LENGTH_MAX];
  jmp_buf jump;
} Jpeg;

_Static_assert(sizeof(Jpeg) <= 2048, "bound.rs counts 2048 bytes for it");

/* A picture's whole coefficients. The library asks for them as "virtual": here they are all there. */
struct jvirt_barray_control {
  JBLOCKARRAY rows;
  JDIMENSION blocks_per_row, row_count, zeroed;
  struct jvirt_barray_control *next;
};

/* On some systems `setjmp` asks the kernel for the signal mask, which nobody needs. */
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
  return message == JWRN_JPEG_EOF || message == JERR_INPUT_EOF || message == JERR_INPUT_EMPTY ? ENDS_EARLY : DAMAGED;
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
  /* Between the segments of the header other readers, the library's own tools included, pass over what they find. */
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
  /* Called for each row of blocks, so a file that is nothing but scans is left at the first one too many. */
  Jpeg *self = self_of(cinfo);
  if ((uint32_t)self->cinfo.input_scan_number > self->scans_max) fail(self, TOO_MANY_SCANS);
}

/* --- memory --- */

static void *take(Jpeg *self, size_t bytes) {
  /* `free_at` is aligned; so is what remains after a piece that is rounded up. */
  size_t left = (size_t)(self->end - self->free_at);
  unsigned char *piece = self->free_at;
  if (bytes > left || (bytes = (bytes + ALIGN - 1) & ~(ALIGN - 1)) > left) fail(self, NO_ROOM);
  self->free_at += bytes;
  return piece;
}

/* A table of `rows` pointers, and what they point to. */
static void **take_rows(Jpeg *self, size_t row_bytes, size_t rows) {
  void **table = take(self, rows * sizeof(void *));
  unsigned char *first;
  size_t row;
  /* A side is at most 65535 and a block 128 bytes, so with 64 bits the product is one. */
  if (rows != 0 && row_bytes > SIZE_MAX / rows) fail(self, NO_ROOM);
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
  /* For quantising to a palette in two passes, which is never asked for. */
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

/* --- the picture --- */

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

/* The library has made its tables. `x` and `width` are what `jpeg_crop_scanline` returned. */
static void read_codes_ourselves(Jpeg *self, JDIMENSION x, JDIMENSION width, int skips) {
  j_decompress_ptr cinfo = &self->cinfo;
  JDIMENSION mcu = (JDIMENSION)(cinfo->min_DCT_scaled_size * (cinfo->num_components == 1 ? 1 : cinfo->max_h_samp_factor));
  if (!huffman_knows(cinfo)) return;
  self->huffman = take(self, sizeof(Huffman));
  huffman_begin(cinfo, self->huffman, x / mcu, (x + width - 1) / mcu, skips);
  ((Entropy *)cinfo->entropy)->decode_mcu = decode_mcu;
}

/* Begins a picture in `arena`, and leaves it before its first wanted row. `*out` is set whenever there is room for the
 * state, also for a picture that fails; `*first_column` and `*columns` are what each row then has. */
int feedstock_jpeg_start(Jpeg **out, unsigned char *arena, size_t arena_bytes, const unsigned char *encoded,
                         size_t encoded_bytes, const Ask *ask, uint32_t *first_column, uint32_t *columns) {
  size_t before = (size_t)(-(uintptr_t)arena) & (ROW_ALIGN - 1);
  size_t state_bytes = (sizeof(Jpeg) + ROW_ALIGN - 1) & ~(ROW_ALIGN - 1);
  j_decompress_ptr cinfo;
  JDIMENSION x, width;
  Jpeg *self;

  *out = NULL;
  if (arena_bytes < before + state_bytes) return NO_ROOM;
  self = (Jpeg *)(arena + before);
  memset(self, 0, offsetof(Jpeg, text));
  self->text[0] = 0;
  self->free_at = arena + before + state_bytes;
  self->end = arena + arena_bytes;
  self->scans_max = ask->scans_max;
  self->accept_truncated = ask->accept_truncated != 0;
  *out = self;
  if (SETJMP(self->jump)) return self->failed;

  create(self, encoded, encoded_bytes);
  cinfo = &self->cinfo;
  self->in_header = 1;
  jpeg_read_header(cinfo, TRUE);
  self->in_header = 0;
  if (cinfo->image_width != ask->width || cinfo->image_height != ask->height ||
      (uint32_t)cinfo->num_components != ask->component_count)
    fail(self, OTHER_PICTURE);

  cinfo->out_color_space =
      cinfo->jpeg_color_space == JCS_CMYK || cinfo->jpeg_color_space == JCS_YCCK ? JCS_CMYK : JCS_RGB;
  cinfo->scale_num = 1;
  cinfo->scale_denom = ask->denominator;
  cinfo->dct_method = JDCT_ISLOW;
  cinfo->do_fancy_upsampling = TRUE;
  /* It guesses at coefficients that a cut progressive file lacks; here such a file is an error, or stays as it is. */
  cinfo->do_block_smoothing = FALSE;
  jpeg_start_decompress(cinfo);

  x = ask->x;
  width = ask->columns;
  jpeg_crop_scanline(cinfo, &x, &width);
  *first_column = x;
  *columns = width;
  if (cinfo->out_color_space == JCS_CMYK) self->ink = take(self, (size_t)width * 4);
  if (ask->own_codes) read_codes_ourselves(self, x, width, ask->y != 0);
  if (ask->y != 0) jpeg_skip_scanlines(cinfo, ask->y);
  return GOOD;
}

/* How much light of one colour two inks let through, rounded. */
static inline unsigned char through(unsigned a, unsigned b) {
  unsigned v = a * b + 128;
  return (unsigned char)((v + (v >> 8)) >> 8);
}

/* Inks are stored as Adobe's programs do it, as the light that is left, whether there is an Adobe marker or not: so does
 * Pillow, and so do the decoders here that are not this one. */
static void ink_to_rgb(const unsigned char *ink, unsigned char *rgb, size_t pixels) {
  for (; pixels != 0; pixels--, ink += 4, rgb += 3) {
    rgb[0] = through(ink[0], ink[3]);
    rgb[1] = through(ink[1], ink[3]);
    rgb[2] = through(ink[2], ink[3]);
  }
}

static void read_rows(Jpeg *self, unsigned char *out, size_t count) {
  j_decompress_ptr cinfo = &self->cinfo;
  size_t row_bytes = (size_t)cinfo->output_width * 3;
  while (count != 0) {
    JSAMPROW rows[ROWS_AT_ONCE];
    JDIMENSION wanted = self->ink ? 1 : (JDIMENSION)(count < ROWS_AT_ONCE ? count : ROWS_AT_ONCE), row, got;
    for (row = 0; row < wanted; row++) rows[row] = self->ink ? self->ink : out + row * row_bytes;
    got = jpeg_read_scanlines(cinfo, rows, wanted);
    if (got == 0) ERREXIT(cinfo, JERR_CANT_SUSPEND);
    if (self->ink) ink_to_rgb(self->ink, out, cinfo->output_width);
    out += got * row_bytes;
    count -= got;
  }
}

/* The next `count` rows, one after the other, each of `columns` pixels. The caller counts rows. */
int feedstock_jpeg_read(Jpeg *self, unsigned char *out, size_t count) {
  if (self->failed) return self->failed;
  if (SETJMP(self->jump)) return self->failed;
  read_rows(self, out, count);
  return GOOD;
}

/* Signs of damage so far, and the library's words for the first of them or for the error. */
uint32_t feedstock_jpeg_warnings(const Jpeg *self) { return self->warnings; }

const char *feedstock_jpeg_text(const Jpeg *self) { return self->text; }

/* How much of its arena the picture has used, but for what comes before the state: for the tests of the bound. */
size_t feedstock_jpeg_used(const Jpeg *self) { return (size_t)(self->free_at - (const unsigned char *)self); }

/* How many MCUs `huffman.h` has decoded so far: for the tests, which could not tell otherwise. */
uint32_t feedstock_jpeg_own_mcus(const Jpeg *self) { return self->huffman ? self->huffman->done : 0; }
