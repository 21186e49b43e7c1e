//! Numbers in tar headers: octal text, or base-256 where octal has no room.
//!
//! Stricter than the `tar` crate, which drops the upper bytes of a base-256 number and takes a sign: a number that two
//! readers understand differently shifts everything after it.

/// Reads a field: octal digits with spaces around or a NUL behind, or 0x80 and a big-endian number.
///
/// `None` for anything else, for a field without digits and for what does not fit 64 bits.
pub(super) fn read(field: &[u8]) -> Option<u64> {
    if let [0x80, rest @ ..] = field {
        return rest.iter().try_fold(0u64, |n, byte| n.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let start = field.iter().take_while(|byte| **byte == b' ').count();
    let digits = field[start..].iter().take_while(|byte| matches!(byte, b'0'..=b'7')).count();
    let (digits, rest) = field[start..].split_at(digits);
    if digits.is_empty() || !rest.iter().all(|byte| matches!(byte, b' ' | 0)) {
        return None;
    }
    digits.iter().try_fold(0u64, |n, digit| n.checked_mul(8)?.checked_add(u64::from(digit - b'0')))
}

/// Writes a field as `print_tar_number` of `src/port/tar.c` does: octal with leading zeros and one space behind,
/// base-256 where that has no room. `field` is 8 to 12 bytes long.
pub(super) fn write(field: &mut [u8], value: u64) {
    let Some((last, digits)) = field.split_last_mut() else { return };
    let mut left = value;
    if value < 1u64 << (3 * digits.len()) {
        *last = b' ';
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (left & 7).to_le_bytes()[0];
            left >>= 3;
        }
    } else {
        for byte in field.iter_mut().rev() {
            *byte = left.to_le_bytes()[0];
            left >>= 8;
        }
        field[0] = 0x80;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads() {
        for (field, value) in [
            (&b"00000000017 "[..], Some(15)),
            (b"00000000017\0", Some(15)),
            (b"     17 \0   ", Some(15)),
            (b"777777777777", Some(0o7777_7777_7777)),
            (b"0       ", Some(0)),
            (b"\0\0\0\0\0\0\0\0", None),
            (b"        ", None),
            (b"", None),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(1 << 33)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", Some(u64::MAX)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"+0000000017 ", None),
            (b"-0000000017 ", None),
            (b"00000000018 ", None),
            (b"0000 000017 ", None),
            (b"0000\x00000017 ", None),
        ] {
            assert_eq!(read(field), value, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn changes_form_where_octal_ends() {
        let mut field = [0; 12];
        write(&mut field, (1 << 33) - 1);
        assert_eq!(&field, b"77777777777 ");
        write(&mut field, 1 << 33);
        assert_eq!(&field, b"\x80\0\0\0\0\0\0\x02\0\0\0\0");
    }

    proptest! {
        #[test]
        fn round_trip(value in any::<u64>(), shift in 0u32..64) {
            let mut field = [0xaa; 12];
            write(&mut field, value >> shift);
            prop_assert_eq!(read(&field), Some(value >> shift));
        }
    }
}
