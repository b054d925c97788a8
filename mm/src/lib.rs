//! (written in the next commits)
#![no_std]
