// What a report draws with: Apache ECharts with its sankey diagram and its SVG renderer, nothing else.
import { init, use } from 'echarts/core';
import { SankeyChart } from 'echarts/charts';
import { TooltipComponent } from 'echarts/components';
import { SVGRenderer } from 'echarts/renderers';
use([SankeyChart, TooltipComponent, SVGRenderer]);
export { init };
