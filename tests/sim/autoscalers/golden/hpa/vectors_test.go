package hpa

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	defaults "k8s.io/kubernetes/pkg/apis/autoscaling/v2"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
)

// A vector is one autoscaler with its settings and a short history: what it saw, and what it wrote after each look.
type vector struct {
	Metric     string    `json:"metric"` // "pods" or "external"
	Target     int64     `json:"target"` // milli-units a replica
	Min        int32     `json:"min"`
	Max        int32     `json:"max"`
	Tolerance  float64   `json:"tolerance"`
	DownWindow int       `json:"down_window"`
	Behavior   *behavior `json:"behavior"`
	Steps      []step    `json:"steps"`
}

type behavior struct {
	Up   rules `json:"up"`
	Down rules `json:"down"`
}

type rules struct {
	Window    *int32   `json:"window"` // null: the controller's own
	Select    string   `json:"select"`
	Tolerance *float64 `json:"tolerance"`
	Policies  []policy `json:"policies"`
}

type policy struct {
	Type   string `json:"type"`
	Value  int32  `json:"value"`
	Period int32  `json:"period"`
}

// A step: Pods are the first letter of what they are (Running, Pending, Terminating, Failed) and their metric in milli-units, "R540";
// "R" alone has none; an external metric has none of them. Blind: the metrics API is away.
type step struct {
	At     int      `json:"at"`
	Spec   int32    `json:"spec"`
	Status int32    `json:"status"`
	Blind  bool     `json:"blind"`
	Pods   []string `json:"pods"`
	Total  int64    `json:"total"`
	Want   int32    `json:"want"`
}

type pod struct {
	name    string
	born    int
	leaves  int // 0: stays
	failed  bool
	starts  int // seconds until it is running
	reports int // seconds until it has a metric
}

func TestWriteVectors(t *testing.T) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	out, err := os.Create("../hpa.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	encoder := json.NewEncoder(out)
	for number := range 200 {
		random := rand.New(rand.NewPCG(20261121, uint64(number)))
		made := draw(random)
		ctx, cancel := context.WithCancel(t.Context())
		w := newWorld(ctx, made.Tolerance, time.Duration(made.DownWindow)*time.Second)
		synctest.Test(t, func(*testing.T) { live(ctx, w, made, random) })
		cancel()
		if err := encoder.Encode(made); err != nil {
			t.Fatal(err)
		}
	}
}

func draw(random *rand.Rand) *vector {
	made := &vector{
		Metric:     []string{"pods", "pods", "external"}[random.IntN(3)],
		Target:     []int64{500, 800, 14_000, 100, 10, 7}[random.IntN(6)],
		Min:        1 + int32(random.IntN(3)),
		Tolerance:  []float64{0.1, 0.1, 0.1, 0.05, 0.25}[random.IntN(5)],
		DownWindow: []int{300, 300, 60}[random.IntN(3)],
	}
	made.Max = made.Min + 1 + int32(random.IntN([]int{4, 10, 24}[random.IntN(3)]))
	if random.IntN(2) == 0 {
		made.Behavior = &behavior{Up: drawRules(random), Down: drawRules(random)}
	}
	return made
}

func drawRules(random *rand.Rand) rules {
	var drawn rules
	if random.IntN(2) == 0 {
		window := []int32{0, 30, 120, 300}[random.IntN(4)]
		drawn.Window = &window
	}
	if random.IntN(3) == 0 {
		tolerance := []float64{0, 0.02, 0.3}[random.IntN(3)]
		drawn.Tolerance = &tolerance
	}
	drawn.Select = []string{"Max", "Max", "Min", "Disabled"}[random.IntN(4)]
	for range random.IntN(4) {
		drawn.Policies = append(drawn.Policies, policy{
			Type:   []string{"Pods", "Percent"}[random.IntN(2)],
			Value:  1 + int32(random.IntN([]int{4, 120}[random.IntN(2)])),
			Period: []int32{15, 30, 60, 180}[random.IntN(4)],
		})
	}
	return drawn
}

// object is the HPA as the API server would hold it: defaults are Kubernetes' own functions, and are written back to the vector.
func object(made *vector) *autoscalingv2.HorizontalPodAutoscaler {
	hpa := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: "engine", Namespace: namespace},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "engine"},
			MinReplicas:    &made.Min, MaxReplicas: made.Max,
		},
	}
	target := autoscalingv2.MetricTarget{
		Type: autoscalingv2.AverageValueMetricType, AverageValue: resource.NewMilliQuantity(made.Target, resource.DecimalSI),
	}
	identifier := autoscalingv2.MetricIdentifier{Name: "load"}
	if made.Metric == "pods" {
		hpa.Spec.Metrics = []autoscalingv2.MetricSpec{{
			Type: autoscalingv2.PodsMetricSourceType, Pods: &autoscalingv2.PodsMetricSource{Metric: identifier, Target: target},
		}}
	} else {
		hpa.Spec.Metrics = []autoscalingv2.MetricSpec{{
			Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{Metric: identifier, Target: target},
		}}
	}
	if made.Behavior != nil {
		hpa.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{
			ScaleUp:   defaults.GenerateHPAScaleUpRules(given(made.Behavior.Up)),
			ScaleDown: defaults.GenerateHPAScaleDownRules(given(made.Behavior.Down)),
		}
		made.Behavior.Up = written(hpa.Spec.Behavior.ScaleUp)
		made.Behavior.Down = written(hpa.Spec.Behavior.ScaleDown)
	}
	return hpa
}

func given(drawn rules) *autoscalingv2.HPAScalingRules {
	result := &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: drawn.Window}
	if drawn.Tolerance != nil {
		result.Tolerance = resource.NewMilliQuantity(int64(math.Round(*drawn.Tolerance*1000)), resource.DecimalSI)
	}
	selected := autoscalingv2.ScalingPolicySelect(drawn.Select)
	result.SelectPolicy = &selected
	for _, one := range drawn.Policies {
		result.Policies = append(result.Policies, autoscalingv2.HPAScalingPolicy{
			Type: autoscalingv2.HPAScalingPolicyType(one.Type), Value: one.Value, PeriodSeconds: one.Period,
		})
	}
	return result
}

func written(full *autoscalingv2.HPAScalingRules) rules {
	result := rules{Window: full.StabilizationWindowSeconds, Select: string(*full.SelectPolicy)}
	if full.Tolerance != nil {
		value := full.Tolerance.AsApproximateFloat64()
		result.Tolerance = &value
	}
	for _, one := range full.Policies {
		result.Policies = append(result.Policies, policy{string(one.Type), one.Value, one.PeriodSeconds})
	}
	return result
}

// live is the afternoon: load that moves, pods that start slowly, fail, lose their metric and leave, and now and then a human or
// a metrics API that is away.
func live(ctx context.Context, w *world, made *vector, random *rand.Rand) {
	hpa := object(made)
	w.spec = made.Min + int32(random.IntN(int(made.Max-made.Min+1)))
	if random.IntN(12) == 0 {
		w.spec = made.Max + 3
	}
	var pods []*pod
	load := float64(made.Target) * float64(w.spec) * (0.2 + 1.6*random.Float64())
	drift, wobble := []float64{0.9, 1, 1.1, 1.5}[random.IntN(4)]+0.1*random.Float64(), []float64{0, 0.04, 0.3}[random.IntN(3)]
	uneven := random.IntN(2) == 0
	starts, reports := random.IntN(60), random.IntN(90)
	lossy := random.IntN(3) == 0
	at := 0
	for range 12 + random.IntN(16) {
		if len(pods) == 0 || random.IntN(4) > 0 { // else whoever makes pods is late
			pods = move(pods, int(w.spec), at, starts, reports, random)
		}
		made.Steps = append(made.Steps, see(w, made, pods, load, at, lossy, uneven, random))
		made.Steps[len(made.Steps)-1].Want = w.look(ctx, hpa)
		if random.IntN(6) == 0 { // someone scales by hand; to zero switches the autoscaler off
			w.spec = int32(random.IntN(int(made.Max) + 2))
		}
		switch load *= drift * (1 + wobble*(random.Float64()-0.5)); {
		case random.IntN(12) == 0:
			load *= 4 * random.Float64()
		case random.IntN(40) == 0:
			load = 0
		case random.IntN(8) == 0: // at the edge of the tolerance
			edge := 1 + made.Tolerance*float64(random.IntN(3)-1)
			load, uneven = edge*float64(made.Target)*float64(w.spec), false
		}
		wait := []int{15, 15, 15, 15, 30, 60, 200}[random.IntN(7)]
		at += wait
		time.Sleep(time.Duration(wait) * time.Second)
	}
}

// move lets pods come and go towards what the Deployment asks.
func move(pods []*pod, spec, at, starts, reports int, random *rand.Rand) []*pod {
	var kept []*pod
	staying := 0
	for _, one := range pods {
		if one.leaves == 0 || one.leaves > at {
			kept = append(kept, one)
		}
		if one.leaves == 0 && !one.failed {
			staying++
		}
	}
	for ; staying < spec; staying++ {
		started := at
		if len(pods) == 0 {
			started = -1000
		}
		kept = append(kept, &pod{name: fmt.Sprintf("engine-%d-%d", at, staying), born: started, starts: starts, reports: starts + reports})
	}
	for i := len(kept) - 1; i >= 0 && staying > spec; i-- {
		if kept[i].leaves == 0 && !kept[i].failed {
			kept[i].leaves = at + 40
			staying--
		}
	}
	if len(kept) > 0 && random.IntN(30) == 0 {
		kept[random.IntN(len(kept))].failed = true
	}
	return kept
}

// see shows the controller the pods and the load, and writes down the same.
func see(w *world, made *vector, pods []*pod, load float64, at int, lossy, uneven bool, random *rand.Rand) step {
	seen := step{At: at, Spec: w.spec, Blind: random.IntN(15) == 0, Total: int64(math.Ceil(load)), Pods: []string{}}
	w.blind, w.total, w.values = seen.Blind, seen.Total, metrics.PodMetricsInfo{}
	_ = w.pods.Replace(nil, "")
	for _, one := range pods {
		object := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: one.name, Namespace: namespace, Labels: map[string]string{"name": "engine"}}}
		phase := "Running"
		object.Status.Phase = v1.PodRunning
		switch {
		case one.leaves > 0:
			now := metav1.Now()
			object.DeletionTimestamp, phase = &now, "Terminating"
		case one.failed:
			object.Status.Phase, phase = v1.PodFailed, "Failed"
		case at-one.born < one.starts:
			object.Status.Phase, phase = v1.PodPending, "Pending"
		}
		if phase == "Running" || phase == "Pending" {
			seen.Status++
		}
		_ = w.pods.Add(object)
		shown := phase[:1]
		if at-one.born >= one.reports && !(lossy && random.IntN(4) == 0) {
			share := load / float64(max(1, w.spec))
			if uneven {
				share *= 0.7 + 0.6*random.Float64()
			}
			value := int64(math.Ceil(share))
			w.values[one.name] = metrics.PodMetric{Value: value}
			shown += strconv.FormatInt(value, 10)
		}
		if made.Metric == "pods" {
			seen.Pods = append(seen.Pods, shown)
		}
	}
	w.status = seen.Status
	return seen
}
