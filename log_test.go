package main

import (
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	bubble(t, "a throttle tells once a minute how often", func(t *testing.T) {
		var th throttle
		var told []int
		for range 181 {
			if n := th.add(); n > 0 {
				told = append(told, n)
			}
			time.Sleep(time.Second)
		}
		equal(t, "numbers told", told, []int{1, 60, 60, 60})
	})
}
