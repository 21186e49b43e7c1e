//! Rows in the format of `COPY … (FORMAT binary)` (PostgreSQL's documentation of COPY, "Binary Format").
//!
//! Performs no I/O. Numbers are in network byte order; nulls are not needed here.

/// Signature, no flags, no header extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The count of fields that ends the data.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// One file's worth of rows.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Rows<'a> {
    /// Empties `out` and begins in it.
    pub(crate) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.clear();
        out.extend_from_slice(HEADER);
        Self { out }
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    /// Begins a row of `fields` fields, which must follow.
    pub(crate) fn row(&mut self, fields: i16) {
        self.out.extend_from_slice(&fields.to_be_bytes());
    }

    /// A field of type `bigint`, or `timestamptz` in microseconds since 2000-01-01.
    pub(crate) fn int8(&mut self, value: i64) {
        self.out.extend_from_slice(&8_i32.to_be_bytes());
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// A field of type `integer`.
    pub(crate) fn int4(&mut self, value: i32) {
        self.out.extend_from_slice(&4_i32.to_be_bytes());
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    /// A field of type `bytea` or `text` that `fill` appends.
    pub(crate) fn bytes(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let at = self.out.len();
        self.out.extend_from_slice(&[0; 4]);
        fill(self.out);
        let length = i32::try_from(self.out.len() - at - 4).expect("a field is far smaller than 2 GiB");
        self.out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// Ends the data.
    pub(crate) fn end(self) {
        self.out.extend_from_slice(&TRAILER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_laid_out_as_documented() {
        let mut out = vec![9; 3];
        let mut rows = Rows::begin(&mut out);
        rows.row(3);
        rows.int8(1);
        rows.int4(-2);
        rows.bytes(|out| out.extend_from_slice(b"abc"));
        assert_eq!(rows.len(), 19 + 2 + 12 + 8 + 7);
        rows.end();
        let expected: &[&[u8]] = &[
            b"PGCOPY\n\xff\r\n\0",
            &[0; 8],
            &[0, 3],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 4, 255, 255, 255, 254],
            &[0, 0, 0, 3, b'a', b'b', b'c'],
            &[255, 255],
        ];
        assert_eq!(out, expected.concat());
    }
}
