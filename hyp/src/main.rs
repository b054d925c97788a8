//! The EL2 binary (written in the next commits).
#![no_std]
#![no_main]
