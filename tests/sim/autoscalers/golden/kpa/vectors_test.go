// Package kpa runs Knative's own pod autoscaler (KPA) over made-up afternoons and writes down what it did.
//
// Nothing of it is transcribed but applyBounds of pkg/reconciler/autoscaling/kpa/scaler.go, which is three comparisons: windows are
// the MetricCollector, decisions are scaling.New(...).Scale(now), and the clock is testing/synctest's.
package kpa

import (
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/apis/autoscaling"
	"knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/autoscaler/metrics"
	"knative.dev/serving/pkg/autoscaler/scaling"
)

// A vector is one autoscaler with its settings and a short history.
type vector struct {
	Target         float64 `json:"target"` // of a replica, after the utilisation
	StableWindow   int     `json:"stable_window"`
	PanicWindow    int     `json:"panic_window"`
	PanicThreshold float64 `json:"panic_threshold"`
	MaxUpRate      float64 `json:"max_up_rate"`
	MaxDownRate    float64 `json:"max_down_rate"`
	DownDelay      int     `json:"down_delay"`
	Activation     int32   `json:"activation_scale"`
	Min            int32   `json:"min"`
	Max            int32   `json:"max"` // 0: none
	Steps          []step  `json:"steps"`
}

// A step: Records are the concurrency of the whole revision in each of the seconds that end with At, null where nobody knew; Want
// is null when the autoscaler made no decision, Bounded is Want within min and max.
type step struct {
	At      int        `json:"at"`
	Records []*float64 `json:"records"`
	Ready   int        `json:"ready"`
	Want    *int32     `json:"want"`
	Bounded *int32     `json:"bounded"`
}

type counted struct{ ready int }

func (c *counted) ReadyCount() (int, error)    { return c.ready, nil }
func (c *counted) NotReadyCount() (int, error) { return 0, nil }

type silent struct{}

func (silent) Scrape(time.Duration) (metrics.Stat, error) { return metrics.Stat{}, nil }

func TestWriteVectors(t *testing.T) {
	out, err := os.Create("../kpa.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	encoder := json.NewEncoder(out)
	for number := range 200 {
		random := rand.New(rand.NewPCG(20261121, uint64(number)))
		made := draw(random)
		synctest.Test(t, func(t *testing.T) { live(t.Context(), made, random) })
		if err := encoder.Encode(made); err != nil {
			t.Fatal(err)
		}
	}
}

func draw(random *rand.Rand) *vector {
	made := &vector{
		Target:         []float64{10, 14, 70, 1, 0.7}[random.IntN(5)],
		StableWindow:   []int{60, 60, 60, 30, 180}[random.IntN(5)],
		PanicThreshold: []float64{2, 2, 2, 1.2, 10}[random.IntN(5)],
		MaxUpRate:      []float64{1000, 1000, 2, 1.1}[random.IntN(4)],
		MaxDownRate:    []float64{2, 2, 1.3, 10}[random.IntN(4)],
		DownDelay:      []int{0, 0, 6, 30, 300}[random.IntN(5)],
		Activation:     []int32{1, 1, 1, 3}[random.IntN(4)],
		Min:            []int32{0, 1, 2}[random.IntN(3)],
		Max:            []int32{0, 60, 12}[random.IntN(3)],
	}
	made.PanicWindow = made.StableWindow / 10
	if random.IntN(5) == 0 {
		made.PanicWindow = made.StableWindow / 4
	}
	return made
}

func live(ctx context.Context, made *vector, random *rand.Rand) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	logger := zap.NewNop().Sugar()
	key := types.NamespacedName{Namespace: "default", Name: "engine"}
	collector := metrics.NewMetricCollector(func(*v1alpha1.Metric, *zap.SugaredLogger) (metrics.StatsScraper, error) {
		return silent{}, nil
	}, logger)
	defer collector.Delete(key.Namespace, key.Name)
	_ = collector.CreateOrUpdate(&v1alpha1.Metric{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
		Spec: v1alpha1.MetricSpec{
			StableWindow: time.Duration(made.StableWindow) * time.Second,
			PanicWindow:  time.Duration(made.PanicWindow) * time.Second,
			ScrapeTarget: "engine", // without one, no data is not told from no load
		},
	})
	pods := &counted{ready: random.IntN(20)}
	if random.IntN(4) == 0 {
		pods.ready = random.IntN(2)
	}
	decider := scaling.New(attribute.NewSet(), noop.NewMeterProvider(), key.Namespace, key.Name, collector, pods, &scaling.DeciderSpec{
		MaxScaleUpRate: made.MaxUpRate, MaxScaleDownRate: made.MaxDownRate, ScalingMetric: autoscaling.Concurrency,
		TargetValue: made.Target, TotalValue: made.Target / 0.7, TargetBurstCapacity: 211, ActivatorCapacity: 100,
		PanicThreshold: made.PanicThreshold, StableWindow: time.Duration(made.StableWindow) * time.Second,
		ScaleDownDelay: time.Duration(made.DownDelay) * time.Second, InitialScale: 1, Reachable: true, ActivationScale: made.Activation,
	})
	began := time.Now()
	load := made.Target * float64(max(1, pods.ready)) * (0.2 + 1.6*random.Float64())
	drift, wobble := 0.97+0.08*random.Float64(), []float64{0, 0.1, 0.6}[random.IntN(3)]
	if random.IntN(4) == 0 || made.Target == 0.7 { // as much as so many carry, exactly
		load, drift, wobble = made.Target*float64(1+random.IntN(12)), 1, 0
	}
	every, follow := []int{2, 2, 5}[random.IntN(3)], random.IntN(40)
	wanted := [][2]int{} // [second, pods]: they become ready later
	for range 10 + random.IntN(20) {
		seen := step{Records: []*float64{}}
		wait, blind := every, random.IntN(12) == 0
		switch random.IntN(16) {
		case 0:
			wait, blind = []int{20, made.StableWindow, made.StableWindow + 1, 200}[random.IntN(4)], true
		case 1:
			wait = 45
		}
		if blind {
			time.Sleep(time.Duration(wait) * time.Second)
			wait = 0
		}
		for left := wait; left > 0; left-- {
			time.Sleep(time.Second)
			value := math.Round(load*(1+wobble*(random.Float64()-0.5))*100) / 100
			if random.IntN(8) == 0 && left > 1 {
				seen.Records = append(seen.Records, nil)
			} else {
				collector.Record(key, time.Now(), metrics.Stat{AverageConcurrentRequests: value})
				seen.Records = append(seen.Records, &value)
			}
			load *= math.Pow(drift, 0.5)
		}
		seen.At = int(time.Since(began).Seconds())
		for len(wanted) > 0 && wanted[0][0] <= seen.At-follow {
			pods.ready, wanted = wanted[0][1], wanted[1:]
		}
		seen.Ready = pods.ready
		if result := decider.Scale(logger, time.Now()); result.ScaleValid {
			bounded := applyBounds(made.Min, made.Max, result.DesiredPodCount)
			seen.Want, seen.Bounded = &result.DesiredPodCount, &bounded
			wanted = append(wanted, [2]int{seen.At, int(bounded)})
		}
		made.Steps = append(made.Steps, seen)
		switch random.IntN(14) {
		case 0:
			load *= 6 * random.Float64()
		case 1:
			load = 0
		case 2:
			load += made.Target * 20 * random.Float64()
		}
	}
}

func applyBounds(least, most, x int32) int32 {
	if x < least {
		return least
	}
	if most != 0 && x > most {
		return most
	}
	return x
}
