//! The buffers that data moves in: one page-aligned pool, sized at start-up, whose buffers recirculate.
//!
//! An empty pool is the backpressure of the whole pipeline: whoever takes a buffer waits until a writer
//! gives one back, so memory grows neither with bytes nor with files.

mod free;
mod page;
mod pool;

pub use page::PageBuffer;
pub use pool::{BufferPool, PAGE};
