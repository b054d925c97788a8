//! Addresses, typed by the space that they belong to.

use core::fmt;

/// Bytes in a page, as a shift.
pub const PAGE_SHIFT: u32 = 12;

macro_rules! address {
    ($( $(#[doc = $doc:literal])+ $addr:ident, $frame:ident; )+) => { $(
        $(#[doc = $doc])+
        #[doc = " In bytes."]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $addr(pub u64);

        $(#[doc = $doc])+
        #[doc = " In pages of 4 KiB."]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $frame(pub u64);

        impl $addr {
            /// The page that the address lies in.
            pub const fn frame(self) -> $frame { $frame(self.0 >> PAGE_SHIFT) }
            /// True at the start of a page.
            pub const fn is_page_aligned(self) -> bool { self.0 & ((1 << PAGE_SHIFT) - 1) == 0 }
        }

        impl $frame {
            /// First byte of the page. Frame numbers below 2^52 do not lose bits.
            pub const fn base(self) -> $addr { $addr(self.0 << PAGE_SHIFT) }
            /// The page `count` pages on, wrapping (callers check ranges first).
            pub const fn offset(self, count: u64) -> Self { Self(self.0.wrapping_add(count)) }
        }

        impl fmt::Debug for $addr {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($addr), "({:#x})"), self.0)
            }
        }
        impl fmt::Debug for $frame {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($frame), "({:#x})"), self.0)
            }
        }
    )+ };
}

address! {
    /// Physical address.
    Pa, Pfn;
    /// Intermediate physical address: what a guest (or the host) takes for physical.
    Ipa, Gfn;
}

/// A run of pages whose end neither wraps nor passes `limit`.
///
/// Returns `None` for an empty run: every call refuses zero pages.
pub const fn checked_end(start: u64, count: u64, limit: u64) -> Option<u64> {
    if count == 0 {
        return None;
    }
    match start.checked_add(count) {
        Some(end) if end <= limit => Some(end),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_addresses_agree() {
        assert_eq!(Pa(0x4000_1fff).frame(), Pfn(0x40001));
        assert_eq!(Gfn(3).base(), Ipa(0x3000));
        assert!(Pa(0x1000).is_page_aligned() && !Pa(0x1008).is_page_aligned());
    }

    #[test]
    fn ranges_that_are_empty_wrap_or_pass_the_limit_are_refused() {
        assert_eq!(checked_end(0, 0, 10), None);
        assert_eq!(checked_end(u64::MAX, 2, u64::MAX), None);
        assert_eq!(checked_end(5, 6, 10), None);
        assert_eq!(checked_end(5, 5, 10), Some(10));
    }
}
