//! vCPUs: the context that is switched, who holds it, how it is run.
//!
//! - [`slot`]: a vCPU's place in its VM: empty, ready, or held by one CPU;
//! - [`context`]: all that a vCPU is while it does not run, in one page of its VM's pool;
//! - [`world`]: loading and unloading it; [`run`]: from VCPU_RUN to the exit; [`regs`]: its registers for the host.

pub mod context;
pub mod regs;
pub mod run;
pub mod run_page;
pub mod slot;
pub mod world;
