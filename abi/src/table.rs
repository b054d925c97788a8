//! The macro that defines constants and lists them for the C header in one stroke.

/// Defines public `u64` constants and a `TABLE` of `(name, value, documentation)` for the C header.
///
/// `prefix` is what the C name starts with; the Rust name follows it.
macro_rules! constants {
    ($prefix:literal; $( $(#[doc = $doc:literal])+ $name:ident = $value:expr; )+) => {
        $( $(#[doc = $doc])+ pub const $name: u64 = $value; )+

        /// Every constant of this module, for the generated C header.
        pub const TABLE: &[$crate::header::Constant] = &[
            $( $crate::header::Constant {
                name: concat!($prefix, stringify!($name)),
                value: $name,
                doc: concat!($($doc),+),
            }, )+
        ];
    };
}
