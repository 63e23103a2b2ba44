//! Element type, layout and shape of samples and batches, and their sizes in bytes.

use std::fmt;
use std::str::FromStr;

use crate::units::ParseError;

/// Element type of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum DType {
    /// Unsigned byte, `0..=255`, as decoded.
    #[default]
    U8,
    /// IEEE 754 single precision.
    F32,
    /// bfloat16: the upper half of an `F32`, rounded to nearest even.
    Bf16,
    /// IEEE 754 half precision, rounded to nearest even.
    F16,
}

impl DType {
    /// Size of one element in bytes.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::Bf16 | DType::F16 => 2,
            DType::F32 => 4,
        }
    }
}

/// Order of a batch's axes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Layout {
    /// Batch, height, width, channel: as decoded.
    Nhwc,
    /// Batch, channel, height, width: as most training code expects.
    #[default]
    Nchw,
}

impl FromStr for DType {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "u8" => Ok(DType::U8),
            "f32" => Ok(DType::F32),
            "bf16" => Ok(DType::Bf16),
            "f16" => Ok(DType::F16),
            _ => Err(ParseError::unknown("dtype", text, "u8, f32, bf16 or f16")),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DType::U8 => "u8",
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
        })
    }
}

impl FromStr for Layout {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "nhwc" => Ok(Layout::Nhwc),
            "nchw" => Ok(Layout::Nchw),
            _ => Err(ParseError::unknown("layout", text, "nchw or nhwc")),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Layout::Nhwc => "nhwc",
            Layout::Nchw => "nchw",
        })
    }
}

/// Channels of a decoded sample: every image becomes RGB.
pub const CHANNELS: usize = 3;

/// Maximum height and width of a sample in a batch. No size of a sample or batch overflows 64 bits.
pub const SIDE_MAX: u32 = 1 << 14;

/// The shape of one sample in a batch: RGB, `height` x `width`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SampleSpec {
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl SampleSpec {
    /// Number of elements: height x width x channels.
    #[must_use]
    pub const fn elements(self) -> usize {
        self.height as usize * self.width as usize * CHANNELS
    }

    /// Size in bytes with this element type.
    #[must_use]
    pub const fn size_bytes(self, dtype: DType) -> usize {
        self.elements() * dtype.size_bytes()
    }
}

impl fmt::Display for SampleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.height, self.width, CHANNELS)
    }
}

/// A rectangle of whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub x: u32,
    /// First row.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Region {
    /// The rectangle of a whole image of `width` x `height` pixels.
    #[must_use]
    pub const fn whole(width: u32, height: u32) -> Self {
        Region { x: 0, y: 0, width, height }
    }

    /// Returns true if it is not empty and lies within an image of `width` x `height` pixels.
    #[must_use]
    pub fn fits(&self, width: u32, height: u32) -> bool {
        let within =
            |at: u32, length: u32, end: u32| length > 0 && at.checked_add(length).is_some_and(|stop| stop <= end);
        within(self.x, self.width, width) && within(self.y, self.height, height)
    }
}

/// EXIF orientation: the rotation and mirroring that turn the *stored* image of a file into the *displayed* one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Orientation {
    /// Stored rows are displayed as columns. The mirrors below apply to the stored image.
    swaps: bool,
    /// The last stored column is displayed first.
    columns: bool,
    /// The last stored row is displayed first.
    rows: bool,
}

impl Orientation {
    /// Displayed as stored: EXIF's 1.
    pub const UPRIGHT: Orientation = Orientation { swaps: false, columns: false, rows: false };

    /// Converts a value of EXIF's tag 0x0112. Values other than 1 to 8 are upright.
    #[must_use]
    pub const fn from_exif(value: u8) -> Self {
        let (swaps, columns, rows) = match value {
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, false, true),
            7 => (true, true, true),
            8 => (true, true, false),
            _ => (false, false, false),
        };
        Orientation { swaps, columns, rows }
    }

    /// Returns true if the displayed width is the stored height.
    #[must_use]
    pub const fn swaps_sides(self) -> bool {
        self.swaps
    }

    /// Returns true if the last stored column is displayed first (as a row if sides swap).
    #[must_use]
    pub const fn mirrors_columns(self) -> bool {
        self.columns
    }

    /// Returns true if the last stored row is displayed first (as a column if sides swap).
    #[must_use]
    pub const fn mirrors_rows(self) -> bool {
        self.rows
    }

    /// Converts stored width and height to displayed ones, and back.
    #[must_use]
    pub const fn sides(self, width: u32, height: u32) -> (u32, u32) {
        if self.swaps { (height, width) } else { (width, height) }
    }
}

/// Mean and standard deviation per channel, on the scale at which white is 1: an element becomes
/// `(v / 255 - mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Normalize {
    /// Mean of red, green, blue.
    pub mean: [f32; 3],
    /// Standard deviation of red, green, blue.
    pub std: [f32; 3],
}

/// Format of a finished batch. The device normalizes, casts and orders the axes.
///
/// The builder refuses `normalize` with [`DType::U8`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OutputFormat {
    /// Element type of the batch.
    pub dtype: DType,
    /// Order of the batch's axes.
    pub layout: Layout,
    /// Normalization of elements. `None` scales floats to `[0, 1]` and leaves bytes as they are.
    pub normalize: Option<Normalize>,
}

impl OutputFormat {
    /// Returns true if a finished batch has the bytes of its slot.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.dtype == DType::U8 && self.layout == Layout::Nhwc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_products() {
        let spec = SampleSpec { height: 224, width: 224 };
        assert_eq!(spec.elements(), 150_528);
        assert_eq!(spec.size_bytes(DType::F32), 602_112);
        assert_eq!(spec.size_bytes(DType::Bf16), 301_056);
        assert_eq!(spec.to_string(), "224x224x3");
        let largest = SampleSpec { height: SIDE_MAX, width: SIDE_MAX };
        assert_eq!(largest.size_bytes(DType::F32), 3 << 30);
    }

    #[test]
    fn names_parse_and_print() {
        for name in ["u8", "f32", "bf16", "f16"] {
            assert_eq!(name.parse::<DType>().expect(name).to_string(), name);
        }
        for name in ["nchw", "nhwc"] {
            assert_eq!(name.parse::<Layout>().expect(name).to_string(), name);
        }
        assert!("f64".parse::<DType>().expect_err("f64").to_string().contains("'f64'"));
        assert!("chw".parse::<Layout>().is_err());
    }

    #[test]
    fn orientations_are_those_of_exif() {
        // CIPA DC-008, tag 0x0112: the side at which stored row 0 and column 0 are displayed.
        let upright = [("top", "left"), ("top", "right"), ("bottom", "right"), ("bottom", "left")];
        let swapped = [("left", "top"), ("right", "top"), ("right", "bottom"), ("left", "bottom")];
        for (value, (row, column)) in (1..=8).zip(upright.into_iter().chain(swapped)) {
            let orientation = Orientation::from_exif(value);
            assert_eq!(orientation.swaps_sides(), value > 4);
            assert_eq!(orientation.mirrors_rows(), matches!(row, "bottom" | "right"), "{value}");
            assert_eq!(orientation.mirrors_columns(), matches!(column, "bottom" | "right"), "{value}");
            assert_eq!(orientation.sides(3, 2), if value > 4 { (2, 3) } else { (3, 2) });
        }
        for value in [0, 1, 9, 255] {
            assert_eq!(Orientation::from_exif(value), Orientation::UPRIGHT);
        }
        assert_eq!(Orientation::default(), Orientation::UPRIGHT);
    }
}
