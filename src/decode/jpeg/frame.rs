//! Frame header (`SOF`) of a JPEG, as the markers give it.

/// Sampling factors of one component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::decode) struct Component {
    pub(super) horizontal: u64,
    pub(super) vertical: u64,
}

/// Frame header, and the first scan's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::decode) struct Frame {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) progressive: bool,
    pub(super) arithmetic: bool,
    /// True if the first scan holds all components. Otherwise all coefficients are kept until the last scan.
    pub(super) one_scan: bool,
    pub(super) components: [Component; 4],
    pub(super) component_count: usize,
    /// Offset of the first scan's entropy-coded data.
    pub(super) data_at: usize,
    /// Length of all metadata segments.
    pub(super) metadata_bytes: u64,
    pub(super) orientation: u8,
}

impl Frame {
    pub(super) fn components(&self) -> &[Component] {
        &self.components[..self.component_count]
    }

    /// Maximum sampling factors, horizontal and vertical: those of a pixel of the image.
    pub(super) fn sampling_max(&self) -> (u64, u64) {
        let most = |of: fn(&Component) -> u64| self.components().iter().map(of).max().unwrap_or(1);
        (most(|component| component.horizontal), most(|component| component.vertical))
    }
}
