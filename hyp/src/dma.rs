//! Whether devices can reach guest memory: the one place that says so, to everyone who asks.
//!
//! A device that is told an address reads and writes it, whoever owns the frame, unless an IOMMU that EL2 drives stands in
//! between. An IOMMU that the host drives keeps nothing from the host.

use tenure_dt::Platform;

/// Devices are kept out of guest memory. No IOMMU is driven on any board yet.
pub const CONTAINED: bool = false;

/// Says it at boot. The host is told by FEATURES, a guest by its QUERY.
pub fn report(platform: &Platform<'_>) {
    match platform.iommu {
        _ if CONTAINED => log::info!("devices cannot reach guest memory"),
        Some(name) => {
            log::warn!("devices can reach guest memory: Tenure does not drive the board's IOMMU ({name})")
        }
        None => log::warn!("devices can reach guest memory: the board's device tree has no IOMMU"),
    }
}
