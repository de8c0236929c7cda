//! The rows of a terminal that output is written to.
//!
//! # Invariants
//! - A text without control characters other than line breaks and tabs is rendered unchanged.
//! - No operation takes longer than a row is wide or the screen is high, and the blanks that cursor
//!   movements leave are bounded, so rendering takes time and space in proportion to the output.

use unicode_width::UnicodeWidthChar;

/// The number of columns after which a line continues in the next row. More than any terminal has:
/// lines should not be broken, but movements within one must not take long.
const WIDTH: usize = 1024;
/// How many rows a cursor can go back. More than most terminals have, so that a long list of
/// progress bars is redrawn in place.
const HEIGHT: usize = 100;
/// The most blanks that movements may leave in total.
pub(super) const BLANKS: usize = 64 << 10;
/// The distance between two tab stops.
const TAB: usize = 8;

/// A column of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cell {
    Char(char),
    /// A character with combining ones, such as an accent.
    Joined(String),
    /// A further column of the preceding character.
    More,
}

const BLANK: Cell = Cell::Char(' ');

#[derive(Debug, Default)]
struct Row {
    cells: Vec<Cell>,
    /// Whether the next row continues the line.
    wraps: bool,
    /// Whether something was overwritten, so that blanks at the end are not the program's.
    redrawn: bool,
}

impl Row {
    /// Blanks a wide character that loses some of its columns at `at`.
    fn split(&mut self, at: usize) {
        if at >= self.cells.len() || self.cells[at] != Cell::More {
            return;
        }
        let is_more = |cell: &Cell| *cell == Cell::More;
        let mut first = at;
        while first > 0 && is_more(&self.cells[first]) {
            first -= 1;
        }
        let end = self.cells[at..].iter().position(|cell| !is_more(cell));
        let end = end.map_or(self.cells.len(), |length| at + length);
        self.cells[first..end].fill(BLANK);
        self.redrawn = true;
    }

    fn cut(&mut self, at: usize) {
        self.split(at);
        if at < self.cells.len() {
            self.redrawn = true;
            self.cells.truncate(at);
        }
        self.wraps = false;
    }

    /// Blanks these columns, as far as they exist.
    fn blank(&mut self, from: usize, to: usize) {
        let to = to.min(self.cells.len());
        if from < to {
            self.split(from);
            self.split(to);
            self.cells[from..to].fill(BLANK);
            self.redrawn = true;
        }
    }
}

/// A screen, and what scrolled off its top.
#[derive(Debug)]
pub(super) struct TerminalScreen {
    rows: Vec<Row>,
    /// The first row that the cursor can reach.
    top: usize,
    /// The cursor's row, possibly below the last one; its column may be past the end of its row.
    row: usize,
    column: usize,
    saved: (usize, usize),
    last: char,
    /// How many blanks movements may still leave.
    blanks: usize,
}

/// A movement of the cursor.
#[derive(Debug, Clone, Copy)]
pub(super) enum CursorMove {
    Up(usize),
    Down(usize),
    Left(usize),
    Right(usize),
    /// From the screen's top, and from the left.
    To(usize, usize),
    Row(usize),
    Column(usize),
}

impl TerminalScreen {
    pub(super) fn new(blanks: usize) -> Self {
        Self {
            rows: Vec::new(),
            top: 0,
            row: 0,
            column: 0,
            saved: (0, 0),
            last: ' ',
            blanks,
        }
    }

    /// How many blanks movements may still leave.
    pub(super) fn blanks(&self) -> usize {
        self.blanks
    }

    pub(super) fn move_by(&mut self, how: CursorMove) {
        let bottom = self.top + HEIGHT - 1;
        match how {
            CursorMove::Up(by) => self.row = self.row.saturating_sub(by).max(self.top),
            // The cursor cannot go below what was written.
            CursorMove::Down(by) => {
                self.row = (self.row + by).min(self.row.max(self.rows.len().saturating_sub(1)));
            }
            CursorMove::Left(by) => self.column = self.column.saturating_sub(by),
            CursorMove::Right(by) => self.column = (self.column + by).min(WIDTH - 1),
            CursorMove::To(row, column) => {
                self.row = (self.top + row).min(bottom);
                self.column = column.min(WIDTH - 1);
            }
            CursorMove::Row(row) => self.row = (self.top + row).min(bottom),
            CursorMove::Column(column) => self.column = column.min(WIDTH - 1),
        }
    }

    pub(super) fn save_cursor(&mut self) {
        self.saved = (self.row - self.top, self.column);
    }

    pub(super) fn restore_cursor(&mut self) {
        self.move_by(CursorMove::To(self.saved.0, self.saved.1));
    }

    /// Moves to the next row, in the same column.
    pub(super) fn index(&mut self) {
        self.cursor_row();
        self.row += 1;
        self.cursor_row();
        self.top = self.top.max((self.row + 1).saturating_sub(HEIGHT));
    }

    /// Moves to the beginning of the next row.
    pub(super) fn line_feed(&mut self) {
        self.index();
        self.column = 0;
    }

    /// The cursor's row.
    fn cursor_row(&mut self) -> &mut Row {
        if self.rows.len() <= self.row {
            self.rows.resize_with(self.row + 1, Row::default);
        }
        &mut self.rows[self.row]
    }

    /// Makes room for a character of that many columns at the cursor.
    fn make_room(&mut self, columns: usize) {
        if self.column + columns > WIDTH {
            self.cursor_row().wraps = true;
            self.line_feed();
        }
        let length = self.cursor_row().cells.len();
        let missing = self.column.saturating_sub(length);
        if missing > self.blanks {
            self.column = length;
        } else if missing > 0 {
            self.blanks -= missing;
            let column = self.column;
            let row = self.cursor_row();
            row.cells.resize(column, BLANK);
            row.redrawn = true;
        }
    }

    /// Writes a character at the cursor.
    pub(super) fn put(&mut self, c: char) {
        let columns = match c.width().unwrap_or(0) {
            0 if self.join(c) => return,
            0 => 1,
            columns => columns,
        };
        self.make_room(columns);
        let at = self.column;
        let row = self.cursor_row();
        if at < row.cells.len() {
            row.split(at);
            row.split(at + columns);
            row.redrawn = true;
        }
        let cells = std::iter::once(Cell::Char(c)).chain((1..columns).map(|_| Cell::More));
        for (at, cell) in (at..).zip(cells) {
            match row.cells.get_mut(at) {
                Some(there) => *there = cell,
                None => row.cells.push(cell),
            }
        }
        self.column += columns;
        self.last = c;
    }

    /// Appends a zero-width character to the preceding one; false if there is none.
    fn join(&mut self, c: char) -> bool {
        let column = self.column;
        let cells = &mut self.cursor_row().cells;
        let Some(before) = column.checked_sub(1).filter(|at| *at < cells.len()) else {
            return false;
        };
        let at = (0..=before).rev().find(|at| cells[*at] != Cell::More);
        match at.map(|at| &mut cells[at]) {
            Some(Cell::Joined(text)) => text.push(c),
            Some(cell @ Cell::Char(_)) => {
                let mut text = String::new();
                if let Cell::Char(first) = cell {
                    text.push(*first);
                }
                text.push(c);
                *cell = Cell::Joined(text);
            }
            Some(Cell::More) | None => return false,
        }
        true
    }

    /// Writes the last character `times` more times.
    pub(super) fn repeat(&mut self, times: usize) {
        let times = times.min(WIDTH).min(self.blanks);
        self.blanks -= times;
        let last = self.last;
        (0..times).for_each(|_| self.put(last));
    }

    /// Moves to the next tab stop. At the end of a row the tab is written, elsewhere it moves the
    /// cursor.
    pub(super) fn tab(&mut self) {
        if self.column < self.cursor_row().cells.len() {
            self.column = (self.column / TAB + 1) * TAB;
            return;
        }
        self.make_room(1);
        let stop = (self.column / TAB + 1) * TAB;
        let columns = stop - self.column;
        let row = self.cursor_row();
        row.cells.push(Cell::Char('\t'));
        row.cells.extend((1..columns).map(|_| Cell::More));
        self.column = stop;
    }

    pub(super) fn erase_in_line(&mut self, what: usize) {
        let column = self.column;
        if self.row >= self.rows.len() {
            return;
        }
        let row = self.cursor_row();
        match what {
            0 => row.cut(column),
            1 => row.blank(0, column + 1),
            2 => row.cut(0),
            _ => {}
        }
    }

    pub(super) fn erase_in_screen(&mut self, what: usize) {
        match what {
            0 => {
                self.erase_in_line(0);
                self.rows.truncate(self.row + 1);
            }
            1 => {
                let end = self.row.min(self.rows.len());
                self.rows[self.top.min(end)..end]
                    .iter_mut()
                    .for_each(|row| row.cut(0));
                self.erase_in_line(1);
            }
            2 => self.rows.truncate(self.top),
            3 => {
                self.rows.drain(..self.top.min(self.rows.len()));
                self.row -= self.top;
                self.top = 0;
            }
            _ => {}
        }
    }

    pub(super) fn erase_characters(&mut self, count: usize) {
        let column = self.column;
        if self.row < self.rows.len() {
            self.cursor_row().blank(column, column + count);
        }
    }

    pub(super) fn delete_characters(&mut self, count: usize) {
        let column = self.column;
        if self.row >= self.rows.len() {
            return;
        }
        let row = self.cursor_row();
        let end = (column + count).min(row.cells.len());
        if column < end {
            row.split(column);
            row.split(end);
            row.cells.drain(column..end);
            row.redrawn = true;
        }
    }

    pub(super) fn insert_characters(&mut self, count: usize) {
        let column = self.column;
        let count = count.min(WIDTH - column.min(WIDTH)).min(self.blanks);
        if self.row >= self.rows.len() || column >= self.cursor_row().cells.len() {
            return;
        }
        self.blanks -= count;
        let row = self.cursor_row();
        row.split(column);
        row.cells.splice(column..column, (0..count).map(|_| BLANK));
        row.split(WIDTH);
        row.cells.truncate(WIDTH);
        row.redrawn = true;
    }

    pub(super) fn insert_rows(&mut self, count: usize) {
        let bottom = self.top + HEIGHT;
        if self.row < self.rows.len() {
            let count = count.min(bottom - self.row);
            let row = self.row;
            self.rows
                .splice(row..row, (0..count).map(|_| Row::default()));
            self.rows.truncate(bottom);
        }
    }

    pub(super) fn delete_rows(&mut self, count: usize) {
        let end = (self.row + count).min(self.rows.len());
        if self.row < end {
            self.rows.drain(self.row..end);
        }
    }

    /// The text on the screen and above it.
    pub(super) fn render(mut self) -> String {
        // Drops emptied rows below the cursor.
        while self.rows.len() > self.row + 1
            && self.rows.last().is_some_and(|row| row.cells.is_empty())
        {
            self.rows.pop();
        }
        let mut text = String::new();
        let count = self.rows.len();
        for (number, row) in self.rows.into_iter().enumerate() {
            let begun = text.len();
            for cell in row.cells {
                match cell {
                    Cell::Char(c) => text.push(c),
                    Cell::Joined(joined) => text.push_str(&joined),
                    Cell::More => {}
                }
            }
            if row.redrawn {
                let end = text[begun..].trim_end_matches([' ', '\t']).len();
                text.truncate(begun + end);
            }
            if !row.wraps && number + 1 < count {
                text.push('\n');
            }
        }
        text
    }
}
