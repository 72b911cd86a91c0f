package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Error is one fault of a document.
type Error struct {
	File string
	// Line and Column count from 1, columns in characters. Both are 0 where
	// the file as a whole could not be read.
	Line, Column int
	// Message says what is wrong and, behind a semicolon, what would be right.
	Message string

	cause error
}

// Error writes the fault as compilers do: FILE:LINE:COLUMN: message.
func (e Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// Unwrap returns what the operating system said, where the file could not be
// read.
func (e Error) Unwrap() error { return e.cause }

// Errors is all that is wrong with a document, sorted by position.
type Errors []Error

// Error writes one fault a line.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the single faults to errors.Is and errors.As.
func (es Errors) Unwrap() []error {
	out := make([]error, len(es))
	for i, e := range es {
		out[i] = e
	}
	return out
}

// pos is a place in the document; both count from 1.
type pos struct{ line, col int }

func (p pos) compare(o pos) int {
	return cmp.Or(cmp.Compare(p.line, o.line), cmp.Compare(p.col, o.col))
}

// fault is an Error before its file is known. Being comparable, it also serves
// to drop the repeats that aliases cause: one wrong value is one fault, however
// often it is referred to.
type fault struct {
	at      pos
	message string
}

// report collects faults.
type report struct {
	faults []fault
}

func (r *report) add(at pos, format string, args ...any) {
	r.faults = append(r.faults, fault{at, fmt.Sprintf(format, args...)})
}

func (r *report) failed() bool { return len(r.faults) > 0 }

func (r *report) sorted(file string) Errors {
	slices.SortStableFunc(r.faults, func(a, b fault) int { return a.at.compare(b.at) })
	seen := make(map[fault]bool, len(r.faults))
	var out Errors
	for _, f := range r.faults {
		if seen[f] {
			continue
		}
		seen[f] = true
		out = append(out, Error{File: file, Line: f.at.line, Column: f.at.col, Message: f.message})
	}
	return out
}
