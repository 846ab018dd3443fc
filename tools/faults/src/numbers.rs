//! Remembers millions of numbered messages in little memory.

/// A set of numbers from 0 on, one bit each.
#[derive(Debug, Default)]
pub struct Numbers {
    words: Vec<u64>,
    count: u64,
}

impl Numbers {
    /// Adds a number. Returns whether it is new.
    pub fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = place(number);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(new);
        new
    }

    /// Whether the set has this number.
    pub fn contains(&self, number: u64) -> bool {
        let (word, bit) = place(number);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// How many numbers there are.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there are no numbers.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The numbers from `first` on that `other` does not have, in order.
    pub fn not_in(&self, other: &Numbers, first: u64) -> Vec<u64> {
        let mut missing = Vec::new();
        for (index, word) in self.words.iter().enumerate().skip(place(first).0) {
            let mut left = word & !other.words.get(index).copied().unwrap_or_default();
            while left != 0 {
                let number = index as u64 * 64 + u64::from(left.trailing_zeros());
                if number >= first {
                    missing.push(number);
                }
                left &= left - 1;
            }
        }
        missing
    }
}

fn place(number: u64) -> (usize, u64) {
    (usize::try_from(number / 64).unwrap_or(usize::MAX), 1 << (number % 64))
}

#[cfg(test)]
mod tests {
    use super::Numbers;

    #[test]
    fn what_is_inserted_is_there_once() {
        let mut numbers = Numbers::default();
        assert!(numbers.is_empty() && numbers.insert(0) && numbers.insert(200) && !numbers.insert(200));
        assert!(numbers.contains(0) && numbers.contains(200) && !numbers.contains(64) && !numbers.contains(100_000));
        assert_eq!(numbers.len(), 2);
    }

    #[test]
    fn what_another_set_lacks_is_found() {
        let (mut sent, mut received) = (Numbers::default(), Numbers::default());
        for number in [0, 63, 64, 130, 500] {
            sent.insert(number);
        }
        received.insert(64);
        received.insert(9_999);
        assert_eq!(sent.not_in(&received, 0), [0, 63, 130, 500]);
        assert_eq!(sent.not_in(&received, 63), [63, 130, 500]);
        assert_eq!(sent.not_in(&received, 131), [500]);
        assert_eq!(sent.not_in(&sent, 0), [0; 0]);
    }
}
