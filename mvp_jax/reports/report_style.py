"""The style sheet of a model's report: light and dark, on a phone and on paper.

The colours of lines are Okabe and Ito's, told apart by every kind of sight; those for dark pages are lighter.
"""

STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--soft:#5b6068;--rule:#d9dce0;--page:#fff;--panel:#f5f6f8;--track:#e4e7eb;
--s0:#5b6068;--s1:#0072b2;--s2:#c24e00;--s3:#00805d;--s4:#a8528a;--s5:#8a6500}
@media (prefers-color-scheme:dark){:root{--ink:#e9ebee;--soft:#a6acb5;--rule:#3a3f46;--page:#15171a;--panel:#1e2125;
--track:#343941;--s0:#b4bac3;--s1:#56b4e9;--s2:#f08a3c;--s3:#35c69b;--s4:#dd9cc4;--s5:#e6b422}}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--rule:#bbb;--page:#fff;--panel:#fff;--track:#ddd;
--s0:#555;--s1:#0072b2;--s2:#c24e00;--s3:#00805d;--s4:#a8528a;--s5:#8a6500}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans",sans-serif;overflow-wrap:anywhere}
main{max-width:54rem;margin:0 auto;padding:1.5rem 1.1rem 3rem}
h1{font-size:1.65rem;line-height:1.2;margin:.4rem 0 .8rem;letter-spacing:-.01em}
h2{font-size:1.15rem;margin:2.4rem 0 .6rem;padding-bottom:.25rem;border-bottom:1px solid var(--rule)}
h3{font-size:1rem;margin:1.4rem 0 .5rem}
p{margin:.5rem 0}
.lead{font-size:1.15rem;line-height:1.45;margin:.3rem 0 .8rem}
.lead strong{font-weight:650}
.soft,figcaption,caption,.beside{color:var(--soft);font-size:.875rem}
.nowrap{white-space:nowrap}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:0 0 .5rem}
th,td{text-align:left;vertical-align:top;padding:.4rem .6rem .4rem 0;border-bottom:1px solid var(--rule)}
thead th{font-size:.875rem;color:var(--soft);font-weight:600;vertical-align:bottom}
tbody th{font-weight:400;color:var(--soft)}
.facts th{width:11rem}
.versions{table-layout:fixed}
.versions thead td{width:34%}
.versions .value{display:block;font-weight:600;overflow-wrap:normal}
.versions .bar{max-width:11rem}
.versions .beside{display:block;line-height:1.3}
.bar{display:block;height:5px;border-radius:2px;background:var(--track);overflow:hidden;margin:.2rem 0 .1rem;
-webkit-print-color-adjust:exact;print-color-adjust:exact}
.bar i{display:block;height:100%;background:var(--s1);-webkit-print-color-adjust:exact;print-color-adjust:exact}
.bar.dense i{background:var(--s0)}
.scroll{overflow-x:auto}
.density th,.density td{padding:.18rem .7rem .22rem 0;font-size:.875rem;line-height:1.25;border-bottom:0;
white-space:nowrap}
.density{width:auto}
.density .bar{width:4.4rem}
.density.few .bar{width:9rem}
.density thead th{white-space:normal;overflow-wrap:normal;padding-bottom:.4rem}
.charts{display:flex;flex-wrap:wrap;gap:1.2rem 1.6rem;align-items:flex-start}
figure{margin:0}
.charts figure{flex:1 1 20rem;max-width:25rem;min-width:0}
.chart{display:block;width:100%;height:auto;font-size:11.5px;overflow:visible}
.chart text{fill:var(--ink)}
.chart .tick{fill:var(--soft)}
.chart .label{fill:var(--soft)}
.chart .name{font-weight:600}
.grid{stroke:var(--rule);stroke-width:1}
.axis{stroke:var(--soft);stroke-width:1}
.target{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:5 4}
.line{fill:none;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}
.interval{fill:none;stroke-width:1.8}
.cross{fill:none;stroke-width:2}
.line.s0{stroke-dasharray:6 4}.line.s2{stroke-dasharray:2 4}.line.s3{stroke-dasharray:9 3 2 3}
.s0{stroke:var(--s0)}.s1{stroke:var(--s1)}.s2{stroke:var(--s2)}.s3{stroke:var(--s3)}.s4{stroke:var(--s4)}
.s5{stroke:var(--s5)}
.dot{stroke:var(--page);stroke-width:1}
.dot.s0,.chart text.s0{fill:var(--s0)}.dot.s1,.chart text.s1{fill:var(--s1)}.dot.s2,.chart text.s2{fill:var(--s2)}
.dot.s3,.chart text.s3{fill:var(--s3)}.dot.s4,.chart text.s4{fill:var(--s4)}.dot.s5,.chart text.s5{fill:var(--s5)}
.dot.s0,.dot.s1,.dot.s2,.dot.s3,.dot.s4,.dot.s5{stroke:var(--page)}
.chart text{stroke:none}
details{margin:.7rem 0}
summary{cursor:pointer;color:var(--s1);font-size:.9375rem}
details table{margin-top:.6rem;font-size:.875rem}
.examples{list-style:none;margin:0;padding:0}
.examples>li{background:var(--panel);border:1px solid var(--rule);border-radius:6px;padding:.6rem .8rem;
margin:0 0 .6rem;break-inside:avoid}
.text{display:block;white-space:pre-line;max-height:14rem;overflow:auto}
.answers{display:flex;flex-wrap:wrap;gap:.1rem 1.2rem;margin:.35rem 0 0;font-size:.9375rem}
.answers b{font-weight:600}
.right{color:var(--s3)}.wrong{color:var(--s2)}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:.7rem;list-style:none;margin:0;
padding:0}
.pictures>li{background:var(--panel);border:1px solid var(--rule);border-radius:6px;padding:.6rem;break-inside:avoid}
.pictures img{display:block;width:100%;height:9rem;object-fit:contain;background:var(--track)}
.pictures .answers{display:block}
.pictures .answers span{display:block}
.pixels{image-rendering:pixelated}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.notes li{margin:.3rem 0}
footer{margin-top:2.5rem;padding-top:.7rem;border-top:1px solid var(--rule)}
@media (max-width:34rem){body{font-size:15px}main{padding:1rem .9rem 2rem}h1{font-size:1.4rem}.lead{font-size:1.05rem}
.facts th,.facts td{display:block;width:auto;border:0;padding:0}.facts td{padding-bottom:.5rem}
.versions th,.versions td{font-size:.875rem;padding-right:.45rem}.versions thead td{width:24%}.versions td,
.versions th{padding-right:.3rem}.versions .value{font-size:.78rem}.versions .beside{font-size:.75rem}
.density .bar{width:2.7rem}.density.few .bar{width:5.2rem}
.density thead th{font-size:.75rem}.density th,.density td{padding-right:.35rem}
.pictures{grid-template-columns:repeat(2,1fr)}}
@media print{body{font-size:10.5pt}main{max-width:none;padding:0}h2,h3{break-after:avoid}tr,figure{break-inside:avoid}
.text{max-height:none}details:not([open]){display:none}summary{color:var(--soft)}}
"""

__all__ = ["STYLE"]
